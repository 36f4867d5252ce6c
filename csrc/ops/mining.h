// Hard negative mining. Losses become unsigned keys that order as the losses do, 0 for what may not be mined and the
// largest for NaN; the k-th largest key is found by a radix select, byte by byte from the top; what is above it is
// mined, and of its equals the first ones.
//
// Source: SSD paper, section 2.2, "Hard negative mining".
#pragma once

#include "dispatch.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
KeyOf<T> mining_key(T loss, bool positive) {
    if (positive || loss == -kInf<T>) return 0;
    return loss == loss ? rising_key(loss) : ~KeyOf<T>(0);
}

// The k-th largest of n keys (1 <= k <= n), and in `equals` how many of the k largest have that value.
template <typename Key>
Key kth_largest(const Key* keys, int64_t n, int64_t k, int64_t& equals) {
    Key prefix = 0, mask = 0;
    for (int shift = 8 * sizeof(Key) - 8; shift >= 0; shift -= 8) {
        int64_t counts[256] = {};
        for (int64_t i = 0; i < n; ++i) counts[(keys[i] >> shift) & 255] += (keys[i] & mask) == prefix;
        int64_t digit = 255;
        for (; counts[digit] < k; --digit) k -= counts[digit];
        prefix |= static_cast<Key>(digit) << shift;
        mask |= Key(255) << shift;
    }
    equals = k;
    return prefix;
}

template <typename T>
void mine_hard_negatives(const T* loss, const bool* positive, int64_t num_anchors, double neg_pos_ratio,
                         int64_t min_negatives, int64_t begin, int64_t end, bool* out) {
    Buffer<KeyOf<T>> keys(num_anchors);
    for (int64_t row = begin; row < end; ++row) {
        const T* const row_loss = loss + row * num_anchors;
        const bool* const row_positive = positive + row * num_anchors;
        bool* const mined = out + row * num_anchors;

        int64_t positives = 0, negatives = 0;
        for (int64_t a = 0; a < num_anchors; ++a) {
            keys[a] = mining_key(row_loss[a], row_positive[a]);
            positives += row_positive[a];
            negatives += keys[a] != 0;
        }
        const double asked = smaller(neg_pos_ratio * static_cast<double>(positives), static_cast<double>(num_anchors));
        const int64_t wanted = smaller(larger(static_cast<int64_t>(std::ceil(asked)), min_negatives), negatives);
        if (wanted == 0) {
            std::memset(mined, 0, static_cast<std::size_t>(num_anchors));
            continue;
        }
        int64_t equals = 0;
        const KeyOf<T> least = kth_largest(keys.data(), num_anchors, wanted, equals);
        for (int64_t a = 0; a < num_anchors; ++a) mined[a] = keys[a] > least;
        for (int64_t a = 0; equals > 0; ++a) {
            if (keys[a] == least) {
                mined[a] = true;
                --equals;
            }
        }
    }
}

}  // namespace fastssd::FASTSSD_ISA
