// Cross entropy over positives and mined negatives, and its gradient. A row is the logits of an anchor. Few rows are
// selected, so the exact loss is computed for few rows. The loss of a background row rises with its odds, the sum of
// exp(logit - background logit) over the foreground. One pass over the logits computes rough odds, with an exponential
// of five operations that is too large by up to 6.2 %. Rows whose odds are so far below the k-th largest that they
// cannot be among the k hardest are left out. The few others and the positives are listed and get their exact loss;
// Miner chooses among them, and the losses that it chose are summed in the order of the anchors. The gradient is zero
// but for the selected rows.
//
// Source: SSD paper, section 2.2, equation 1 and "Hard negative mining".
#pragma once

#include <type_traits>

#include "ops/mining.h"
#include "support/buffer.h"
#include "support/exp.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/prefetch.h"
#include "support/select.h"
#include "support/simd.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

FASTSSD_INLINE int32_t to_integer(float x) { return static_cast<int32_t>(x); }
#if defined(__GNUC__)
template <typename Vector>
FASTSSD_INLINE auto to_integer(Vector x) {
    return __builtin_convertvector(x, decltype(x > x));  // a comparison gives integers of the same width
}
#endif

// At least exp(x) and at most 1.062 exp(x) for x in [-87, 80]. Any other x counts as the nearer end, and NaN as 80. The
// integer part of x / log(2) goes where a float has its exponent, the rest where it has its fraction. For floats and
// for vectors of floats.
template <typename Float>
FASTSSD_INLINE Float rough_exp(Float x) {
    constexpr float kScale = 12102203.16f, kOne = 1065353216.0f;  // 2^23 / log(2), the bits of 1
    const Float least = Float{} - 87.0f, most = Float{} + 80.0f;
    x = x < most ? x : most;
    x = x > least ? x : least;
    const auto bits = to_integer(x * kScale + kOne);
    static_assert(sizeof(bits) == sizeof(x));
    Float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}
constexpr float kRoughExcess = 1.07f;  // 1.062, and some more for rounding
constexpr float kRoughMost = 5e34f;    // just below exp(80)

// The softmax of a row.
template <typename T>
class Softmax {
  public:
    explicit Softmax(int64_t num_classes)
        : n_(num_classes), width_((n_ + kLanes - 1) / kLanes * kLanes), shifted_(width_), values_(width_) {}

    void run(const T* logits) {
        T* FASTSSD_RESTRICT const shifted = shifted_.data();
        T* FASTSSD_RESTRICT const values = values_.data();
        std::memcpy(shifted, logits, static_cast<std::size_t>(n_) * sizeof(T));
        for (int64_t i = n_; i < width_; ++i) shifted[i] = -kInf<T>;
        const T most = max_lanes(shifted, width_).largest();
        for (int64_t i = 0; i < width_; ++i) shifted[i] -= most;
        for (int64_t i = 0; i < width_; ++i) values[i] = exp_of(shifted[i]);
        for (int64_t i = n_; i < width_; ++i) values[i] = 0;  // NaN where all logits are -inf
        Lanes<T> sums = Lanes<T>::all(T(0));
        for (int64_t begin = 0; begin < width_; begin += kLanes) sums = sums + Lanes<T>::load(values + begin);
        sum_ = sums.sum();
    }

    T loss(int64_t label) const { return std::log(sum_) - shifted_[column(label)]; }

    // `scale` times the gradient of that loss.
    void write_gradient(int64_t label, T scale, T* FASTSSD_RESTRICT out) const {
        const T* FASTSSD_RESTRICT const values = values_.data();
        const T sum = sum_;
        for (int64_t c = 0; c < n_; ++c) out[c] = values[c] / sum * scale;
        out[column(label)] = (values[column(label)] / sum - 1) * scale;
    }

  private:
    static constexpr int64_t kLanes = Lanes<T>::kCount;

    // Another thread may write to the labels after they were checked: any label gives a column of the row.
    int64_t column(int64_t label) const { return smaller(larger(label, int64_t(0)), n_ - 1); }

    const int64_t n_, width_;
    Buffer<T> shifted_, values_;
    T sum_ = 0;
};

template <typename T>
class MultiboxLoss {
  public:
    explicit MultiboxLoss(const MultiboxCrossEntropyTask<T>& task)
        : task_(task),
          n_(task.num_anchors),
          num_classes_(task.num_classes),
          lanes_(kLanes * kLanes),
          counts_(kLanes),
          padded_(num_classes_ + kLanes),
          odds_(n_),
          keys_(n_),
          anchors_(n_),
          losses_(n_),
          positive_(n_),
          mined_(n_),
          softmax_(num_classes_) {
        for (int64_t i = 0; i < kLanes * kLanes; ++i) lanes_[i] = 0;
        for (int64_t i = 0; i < kLanes; ++i) {
            counts_[i] = i < (num_classes_ - 1) % kLanes ? 1.0f : 0.0f;
            padded_[num_classes_ + i] = 0;
        }
    }

    void run(int64_t image) {
        logits_ = task_.logits + image * n_ * num_classes_;
        labels_ = task_.labels + image * n_;
        bool* const selected = task_.selected + image * n_;
        if (!take_odds()) return;
        const int64_t wanted = count_wanted();
        const int64_t found = list(wanted);

        Miner<T>(found).run(losses_.data(), positive_.data(), 0, wanted, mined_.data());
        std::memset(selected, 0, static_cast<std::size_t>(n_));
        double sum = 0;
        for (int64_t i = 0; i < found; ++i) {
            if (!positive_[i] && !mined_[i]) continue;
            selected[anchors_[i]] = true;
            sum += static_cast<double>(losses_[i]);
        }
        task_.losses[image] = sum;
    }

  private:
    static constexpr int64_t kLanes = Lanes<float>::kCount;

    // --- odds

    // The odds of every row, -1 where it may not be mined. False where the call was cancelled.
    bool take_odds() {
        Pacer pacer;
        for (int64_t begin = 0; begin < n_; begin += kLanes) {
            const int64_t count = smaller(kLanes, n_ - begin);
            if (pacer.cancelled(count * (num_classes_ / 4 + 2))) return false;
            const T* const rows = logits_ + begin * num_classes_;
            float sums[kLanes] = {};
            if (num_classes_ > kLanes) {
                sum_along_rows(rows, count, begin + count == n_, sums);
            } else if (count == kLanes) {
                sum_across_rows(rows, kLanes, sums);
            } else {
                sum_across_rows(rows, count, sums);
            }
            // Infinity, which mining takes for the largest loss, where the sum is too large or NaN, or the background
            // logit is not finite.
            for (int64_t i = 0; i < count; ++i) {
                const T background = rows[i * num_classes_];
                const float odds = sums[i] + static_cast<float>(background - background);
                odds_[begin + i] = labels_[begin + i] != 0 ? -1.0f : odds < kRoughMost ? odds : kInf<float>;
            }
        }
        return true;
    }

    // The lanes of all rows are stored before any are summed: else GCC sums each row number by number.
    void sum_along_rows(const T* rows, int64_t count, bool last, float* FASTSSD_RESTRICT sums) {
        for (int64_t r = 0; r < count; ++r) {
            const T* row = rows + r * num_classes_;
            prefetch_behind(row, num_classes_);
            if (last && r + 1 == count) {  // its last block would read past the end of the logits
                std::memcpy(padded_.data(), row, static_cast<std::size_t>(num_classes_) * sizeof(T));
                row = padded_.data();
            }
            lanes_of(row).store(lanes_.data() + r * kLanes);
        }
        float quarters[4 * kLanes];
        for (int64_t r = 0; r < kLanes; ++r) {
            const float* const lanes = lanes_.data() + r * kLanes;
            for (int64_t i = 0; i < 4; ++i) {
                quarters[4 * r + i] = (lanes[i] + lanes[i + 8]) + (lanes[i + 4] + lanes[i + 12]);
            }
        }
        for (int64_t r = 0; r < kLanes; ++r) {
            const float* const q = quarters + 4 * r;
            sums[r] = (q[0] + q[2]) + (q[1] + q[3]);
        }
    }

    FASTSSD_INLINE Lanes<float> lanes_of(const T* row) const {
        const Lanes<T> background = Lanes<T>::all(row[0]);
        const auto terms = [&](int64_t column) {
            const Lanes<T> distances = Lanes<T>::load(row + column) - background;
            return as_floats(distances).each([](auto part) { return rough_exp(part); });
        };
        Lanes<float> sums = Lanes<float>::all(0.0f);
        int64_t column = 1;
        for (; column + kLanes <= num_classes_; column += kLanes) sums = sums + terms(column);
        return column < num_classes_ ? sums + terms(column) * Lanes<float>::load(counts_.data()) : sums;
    }

    static FASTSSD_INLINE Lanes<float> as_floats(const Lanes<T>& lanes) {
        if constexpr (std::is_same_v<T, float>) {
            return lanes;
        } else {
            T from[kLanes];
            lanes.store(from);
            float to[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<float>(from[i]);
            return Lanes<float>::load(to);
        }
    }

    // For rows shorter than the lanes: one row in each lane.
    FASTSSD_INLINE void sum_across_rows(const T* rows, int64_t count, float* sums) const {
        for (int64_t c = 1; c < num_classes_; ++c) {
            float terms[kLanes];
            for (int64_t i = 0; i < count; ++i) {
                const T* const row = rows + i * num_classes_;
                terms[i] = static_cast<float>(row[c] - row[0]);
            }
            for (int64_t i = 0; i < count; ++i) sums[i] += rough_exp(terms[i]);
        }
    }

    // --- the rows that are listed

    int64_t count_wanted() const {
        int64_t positives = 0;
        for (int64_t a = 0; a < n_; ++a) positives += static_cast<int64_t>(labels_[a] > 0);
        return wanted_negatives(task_.neg_pos_ratio, positives, task_.min_negatives, n_);
    }

    // Lists the positives and every negative that mining may choose, with their losses. Returns how many.
    int64_t list(int64_t wanted) {
        const float least = wanted > 0 ? least_odds(wanted) : kInf<float>;
        int64_t found = 0;
        for (int64_t a = 0; a < n_; ++a) {
            anchors_[found] = static_cast<uint32_t>(a);
            positive_[found] = labels_[a] > 0;
            found += static_cast<int64_t>(positive_[found] | (odds_[a] >= least));
        }
        Pacer pacer;
        for (int64_t i = 0; i < found; ++i) {
            constexpr int64_t kAhead = 4;
            if (pacer.cancelled(num_classes_ + 16)) break;
            if (i + kAhead < found) prefetch(logits_ + anchors_[i + kAhead] * num_classes_, num_classes_);
            const int64_t a = anchors_[i];
            softmax_.run(logits_ + a * num_classes_);
            losses_[i] = softmax_.loss(labels_[a]);
        }
        return found;
    }

    // A bound that the odds of the `wanted` hardest rows all reach: a bound that enough rough odds reach, minus the
    // excess of rough odds, minus the rounding of the loss, which is log(1 + odds).
    float least_odds(int64_t wanted) {
        std::memcpy(keys_.data(), odds_.data(), static_cast<std::size_t>(n_) * sizeof(float));  // in the same order
        const int32_t key = bound_of_largest(keys_.data(), n_, wanted, wanted + wanted / 8, 0);
        float bound;
        std::memcpy(&bound, &key, sizeof(bound));
        if (!is_finite(bound)) return bound;
        const float rounding =
            static_cast<float>(num_classes_ + 64) * static_cast<float>(std::numeric_limits<T>::epsilon());
        return positive_part(bound / kRoughExcess - rounding * (1 + bound));
    }

    const MultiboxCrossEntropyTask<T>& task_;
    const int64_t n_, num_classes_;
    const T* logits_ = nullptr;        // of the image
    const int64_t* labels_ = nullptr;  // of the image
    Buffer<float> lanes_;              // of kLanes rows
    Buffer<float> counts_;             // for the last block of a row: 1 for a lane within the row, else 0
    Buffer<T> padded_;                 // the last row of the logits, and room for a whole block after it
    Buffer<float> odds_;               // of every row
    Buffer<int32_t> keys_;
    Buffer<uint32_t> anchors_;  // of the listed rows, as the three below
    Buffer<T> losses_;
    Buffer<bool> positive_, mined_;
    Softmax<T> softmax_;
};

template <typename T>
void multibox_cross_entropy(const MultiboxCrossEntropyTask<T>& task, int64_t begin, int64_t end) {
    MultiboxLoss<T> loss(task);
    for (int64_t image = begin; image < end; ++image) loss.run(image);
}

template <typename T>
void multibox_cross_entropy_gradient(const MultiboxCrossEntropyGradientTask<T>& task, int64_t begin, int64_t end) {
    constexpr int64_t kAhead = 8;  // selected rows that are prefetched together
    const T* const logits = task.logits;
    T* const out = task.out;
    const int64_t num_classes = task.num_classes;
    const T scale = static_cast<T>(task.scale);
    // Zeros are written by a loop: memset takes a quarter longer where the memory is not in the cache, and GCC would
    // turn the loop into memset if it knew the value.
    const volatile T hidden = 0;
    const T zero = hidden;
    const auto clear = [&](int64_t from, int64_t to) {
        for (int64_t i = from * num_classes; i < to * num_classes; ++i) out[i] = zero;
    };
    const auto* const selected = reinterpret_cast<const uint8_t*>(task.selected);  // any byte but 0 is true
    Softmax<T> softmax(num_classes);
    Pacer pacer;
    for (int64_t row = begin; row < end;) {
        int64_t chosen[kAhead], count = 0, stop = row;
        for (; stop < end && count < kAhead; ++stop) {
            if (selected[stop] == 0) continue;
            prefetch(logits + stop * num_classes, num_classes);
            chosen[count++] = stop;
        }
        if (pacer.cancelled((stop - row + 4 * count) * num_classes / 4 + 16)) return;
        for (int64_t i = 0; i < count; row = chosen[i++] + 1) {
            clear(row, chosen[i]);
            softmax.run(logits + chosen[i] * num_classes);
            softmax.write_gradient(task.labels[chosen[i]], scale, out + chosen[i] * num_classes);
        }
        clear(row, stop);
        row = stop;
    }
}

}  // namespace fastssd::FASTSSD_ISA
