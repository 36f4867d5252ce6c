// A bound of the k largest keys, by bisection over the values of signed keys. Each step counts the keys that reach a
// value, which vectorises well and has no branch to predict. It ends as soon as the count is close enough.
#pragma once

#include <cstdint>
#include <type_traits>

#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
using SignedKeyOf = typename Bits<T>::Signed;

template <typename Key>
int64_t count_at_least(const Key* keys, int64_t n, Key bound) {
    constexpr int64_t kPart = 1 << 20;  // so that the count of a part fits every key type
    int64_t total = 0;
    for (int64_t begin = 0; begin < n; begin += kPart) {
        const int64_t end = smaller(begin + kPart, n);
        Key count = 0;
        for (int64_t i = begin; i < end; ++i) count += static_cast<Key>(keys[i] >= bound);
        total += count;
    }
    return total;
}

// A bound >= `least` that between k and `enough` keys reach. Where equal keys make that impossible, the k-th largest
// key; where fewer than k keys reach `least`, `least`. 1 <= k <= enough. No key may be the largest number of its type.
template <typename Key>
Key bound_of_largest(const Key* keys, int64_t n, int64_t k, int64_t enough, Key least) {
    using Unsigned = std::make_unsigned_t<Key>;
    Key beyond = least;  // fewer than k keys reach it
    for (int64_t i = 0; i < n; ++i) beyond = larger(keys[i], beyond);
    ++beyond;
    // The difference of two keys may need all bits.
    while (static_cast<Unsigned>(beyond) - static_cast<Unsigned>(least) > 1) {
        const Unsigned distance = static_cast<Unsigned>(beyond) - static_cast<Unsigned>(least);
        const Key middle = static_cast<Key>(static_cast<Unsigned>(least) + distance / 2);
        const int64_t count = count_at_least(keys, n, middle);
        if (count < k) {
            beyond = middle;
        } else {
            least = middle;
            if (count <= enough) break;
        }
    }
    return least;
}

}  // namespace fastssd::FASTSSD_ISA
