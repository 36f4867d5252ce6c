// How large are the k largest? Bisection over the values of signed keys: each step counts, which vectorises well and
// has no branch to predict, and it ends as soon as the count is near enough.
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
    constexpr int64_t kPart = 1 << 20;  // counts of a part fit any key type
    int64_t total = 0;
    for (int64_t begin = 0; begin < n; begin += kPart) {
        const int64_t end = smaller(begin + kPart, n);
        Key count = 0;
        for (int64_t i = begin; i < end; ++i) count += static_cast<Key>(keys[i] >= bound);
        total += count;
    }
    return total;
}

// A bound, at least `least`, which between k and `enough` of the keys reach; with more equal keys than that, the k-th
// largest of all; `least` where not even k keys reach that. 1 <= k <= enough. No key may be the largest of its type.
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
