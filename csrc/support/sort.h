// Stable sorting of keys: radix sort, and simpler sorts for few. Keys that order as scores do, both ways.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "support/buffer.h"

namespace fastssd::FASTSSD_ISA {

template <typename Key>
struct Entry {
    Key key;
    uint32_t index;
};

template <typename T>
struct Bits;
template <>
struct Bits<float> {
    using Unsigned = uint32_t;
    using Signed = int32_t;
};
template <>
struct Bits<double> {
    using Unsigned = uint64_t;
    using Signed = int64_t;
};

template <typename T>
using KeyOf = typename Bits<T>::Unsigned;

// An unsigned integer in the order of the floats; -0 equals 0. Not for NaN.
template <typename T>
KeyOf<T> ascending_key(T value) {
    constexpr KeyOf<T> kSign = KeyOf<T>(1) << (8 * sizeof(T) - 1);
    value += T(0);
    KeyOf<T> bits;
    std::memcpy(&bits, &value, sizeof(T));
    return bits & kSign ? ~bits : bits | kSign;
}

template <typename T>
KeyOf<T> descending_key(T value) {
    return ~ascending_key(value);
}

template <typename T>
T value_of_descending_key(KeyOf<T> key) {
    constexpr KeyOf<T> kSign = KeyOf<T>(1) << (8 * sizeof(T) - 1);
    const KeyOf<T> bits = key & kSign ? key : ~key ^ kSign;
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline uint64_t ascending_key(int64_t value) { return static_cast<uint64_t>(value) ^ (uint64_t(1) << 63); }

constexpr int64_t kMostRanked = 64;

template <typename Key>
void insertion_sort(Entry<Key>* entries, int64_t n) {
    for (int64_t i = 1; i < n; ++i) {
        const Entry<Key> entry = entries[i];
        int64_t to = i;
        for (; to > 0 && entries[to - 1].key > entry.key; --to) entries[to] = entries[to - 1];
        entries[to] = entry;
    }
}

// The place of an entry is the number of entries before it: no branch to predict, and it vectorises. For up to
// kMostRanked entries.
template <typename Key>
void rank_sort(Entry<Key>* entries, Entry<Key>* scratch, int64_t n) {
    constexpr int64_t kStep = 8;
    using Signed = std::make_signed_t<Key>;
    Signed keys[kMostRanked], places[kMostRanked], ranks[kMostRanked] = {};
    const int64_t padded = (n + kStep - 1) / kStep * kStep;
    for (int64_t i = 0; i < padded; ++i) {
        keys[i] = static_cast<Signed>((i < n ? entries[i].key : 0) ^ (Key(1) << (8 * sizeof(Key) - 1)));
        places[i] = static_cast<Signed>(i);
    }
    for (int64_t j = 0; j < n; ++j) {
        const Signed key = keys[j];
        const auto place = static_cast<Signed>(j);
        for (int64_t i = 0; i < padded / kStep * kStep; ++i) {
            ranks[i] += static_cast<Signed>((key < keys[i]) | ((key == keys[i]) & (place < places[i])));
        }
    }
    std::memcpy(scratch, entries, static_cast<std::size_t>(n) * sizeof(Entry<Key>));
    for (int64_t i = 0; i < n; ++i) entries[ranks[i]] = scratch[i];
}

// Least significant digit first; a digit that all keys share is skipped. The result is in the one that is returned.
template <int kDigitBits, typename Key>
Entry<Key>* radix_sort(Entry<Key>* entries, Entry<Key>* scratch, int64_t n) {
    constexpr int kDigits = (8 * static_cast<int>(sizeof(Key)) + kDigitBits - 1) / kDigitBits;
    constexpr uint32_t kValues = 1u << kDigitBits;
    uint32_t counts[kDigits][kValues] = {};
    const auto digit_of = [](Key key, int digit) {
        return static_cast<uint32_t>(key >> (kDigitBits * digit)) & (kValues - 1);
    };
    for (int64_t i = 0; i < n; ++i) {
        for (int digit = 0; digit < kDigits; ++digit) ++counts[digit][digit_of(entries[i].key, digit)];
    }
    for (int digit = 0; digit < kDigits; ++digit) {
        uint32_t* const place = counts[digit];
        if (place[digit_of(entries[0].key, digit)] == n) continue;
        uint32_t before = 0;
        for (uint32_t value = 0; value < kValues; ++value) {
            const uint32_t count = place[value];
            place[value] = before;
            before += count;
        }
        for (int64_t i = 0; i < n; ++i) scratch[place[digit_of(entries[i].key, digit)]++] = entries[i];
        Entry<Key>* const sorted = scratch;
        scratch = entries;
        entries = sorted;
    }
    return entries;
}

// Sorts by ascending key. `entries` and `scratch` hold n each; the result is in the one that is returned.
template <typename Key>
Entry<Key>* sort_entries(Entry<Key>* entries, Entry<Key>* scratch, int64_t n) {
    constexpr int64_t kFew = 8, kMany = 20000;  // from here on fewer, wider digits pay for their longer tables
    if (n <= kFew) {
        insertion_sort(entries, n);
        return entries;
    }
    if (n <= kMostRanked) {
        rank_sort(entries, scratch, n);
        return entries;
    }
    return n < kMany ? radix_sort<8>(entries, scratch, n) : radix_sort<11>(entries, scratch, n);
}

}  // namespace fastssd::FASTSSD_ISA
