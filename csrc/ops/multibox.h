// Cross entropy over positives and mined negatives, and its gradient. Hardly a row is selected, so hardly a row is
// given its exact loss. What a background row loses rises with its odds, the sum of exp(logit - background's logit)
// over the foreground; one pass over the logits takes these odds roughly, with an exponential of five operations that
// is too large by up to 6.2 %. Rows whose odds lie so far below the k-th largest that they cannot be among the k
// hardest are done with. The few others and the positives are listed; they get their loss, Miner chooses among them,
// and what it chose is summed in order of the anchors. The gradient is a fill with zeros but for the selected rows.
//
// Source: SSD paper, section 2.2, equation 1 and "Hard negative mining".
#pragma once

#include <type_traits>

#include "dispatch.h"
#include "ops/mining.h"
#include "support/buffer.h"
#include "support/exp.h"
#include "support/lanes.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/prefetch.h"
#include "support/select.h"

namespace fastssd::FASTSSD_ISA {

FASTSSD_INLINE int32_t whole(float x) { return static_cast<int32_t>(x); }
#if defined(__GNUC__)
template <typename Vector>
FASTSSD_INLINE auto whole(Vector x) {
    return __builtin_convertvector(x, decltype(x > x));  // a comparison gives a vector of whole numbers as wide
}
#endif

// At least exp(x) and at most 1.062 exp(x) within [-87, 80], outside of which x counts as the nearer end, and NaN
// as 80. The whole part of x / log(2) goes where a float has its exponent, the rest where it has its fraction. For
// floats and for vectors of floats.
template <typename Float>
FASTSSD_INLINE Float rough_exp(Float x) {
    constexpr float kScale = 12102203.16f, kOne = 1065353216.0f;  // 2^23 / log(2), the bits of 1
    const Float least = Float{} - 87.0f, most = Float{} + 80.0f;
    x = x < most ? x : most;
    x = x > least ? x : least;
    const auto bits = whole(x * kScale + kOne);
    static_assert(sizeof(bits) == sizeof(x));
    Float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}
constexpr float kRoughExcess = 1.07f, kRoughMost = 5e34f;  // some of it for rounding; just below exp(80)

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
        Lanes<T> sums(T(0));
        for (int64_t begin = 0; begin < width_; begin += kLanes) sums = sums + Lanes<T>(values + begin);
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

    // Another thread may write to the labels after they were checked: whatever stands there, no other memory is used.
    int64_t column(int64_t label) const { return smaller(larger(label, int64_t(0)), n_ - 1); }

    const int64_t n_, width_;
    Buffer<T> shifted_, values_;
    T sum_ = 0;
};

template <typename T>
class MultiboxLoss {
  public:
    explicit MultiboxLoss(const MultiboxTask<T>& task)
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

    // -1 for what may not be mined. False where nobody wants them any more.
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
            // Infinity where the sum is too large or not a number, which mining takes for the largest of losses, and
            // where the background's logit is not finite.
            for (int64_t i = 0; i < count; ++i) {
                const T background = rows[i * num_classes_];
                const float odds = sums[i] + static_cast<float>(background - background);
                odds_[begin + i] = labels_[begin + i] != 0 ? -1.0f : odds < kRoughMost ? odds : kInf<float>;
            }
        }
        return true;
    }

    // The lanes of all rows are stored before any are folded: else GCC folds each row's number by number.
    void sum_along_rows(const T* rows, int64_t count, bool last, float* FASTSSD_RESTRICT sums) {
        for (int64_t r = 0; r < count; ++r) {
            const T* row = rows + r * num_classes_;
            prefetch_behind(row, num_classes_);
            if (last && r + 1 == count) {  // its last block runs past the end of the row
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
        const Lanes<T> background(row[0]);
        const auto terms = [&](int64_t column) {
            const Lanes<T> distances = Lanes<T>(row + column) - background;
            return as_floats(distances).each([](auto part) { return rough_exp(part); });
        };
        Lanes<float> sums(0.0f);
        int64_t column = 1;
        for (; column + kLanes <= num_classes_; column += kLanes) sums = sums + terms(column);
        return column < num_classes_ ? sums + terms(column) * Lanes<float>(counts_.data()) : sums;
    }

    static FASTSSD_INLINE Lanes<float> as_floats(const Lanes<T>& lanes) {
        if constexpr (std::is_same_v<T, float>) {
            return lanes;
        } else {
            T from[kLanes];
            lanes.store(from);
            float to[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<float>(from[i]);
            return Lanes<float>(to);
        }
    }

    // Rows that are shorter than the lanes stand side by side.
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

    // --- what is listed

    int64_t count_wanted() const {
        int64_t positives = 0;
        for (int64_t a = 0; a < n_; ++a) positives += static_cast<int64_t>(labels_[a] > 0);
        return wanted_negatives(task_.neg_pos_ratio, positives, task_.min_negatives, n_);
    }

    // Lists the positives and every negative that may be mined, with their losses. Returns how many they are.
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

    // What the odds of the `wanted` hardest rows all reach: the bound that enough rough odds reach, less what rough
    // odds are too large by, and less what rounding can do to the loss that is the logarithm of 1 + odds.
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

    const MultiboxTask<T>& task_;
    const int64_t n_, num_classes_;
    const T* logits_ = nullptr;        // of the image
    const int64_t* labels_ = nullptr;  // of the image
    Buffer<float> lanes_;              // of kLanes rows
    Buffer<float> counts_;             // of the lanes of a row's last block: 1, or 0 beyond the end of the row
    Buffer<T> padded_;
    Buffer<float> odds_;
    Buffer<int32_t> keys_;
    Buffer<uint32_t> anchors_;  // and of each that is listed:
    Buffer<T> losses_;
    Buffer<bool> positive_, mined_;
    Softmax<T> softmax_;
};

template <typename T>
void multibox_cross_entropy(const MultiboxTask<T>& task, int64_t begin, int64_t end) {
    MultiboxLoss<T> loss(task);
    for (int64_t image = begin; image < end; ++image) loss.run(image);
}

template <typename T>
void multibox_cross_entropy_gradient(const T* logits, const int64_t* labels, const bool* selected, T scale,
                                     int64_t num_classes, int64_t begin, int64_t end, T* out) {
    constexpr int64_t kAhead = 8;  // selected rows that are on their way
    // A loop, for memory that is not in the cache: memset takes a quarter longer there, and GCC would make it one if it
    // knew what is written.
    const volatile T hidden = 0;
    const T zero = hidden;
    const auto clear = [&](int64_t from, int64_t to) {
        for (int64_t i = from * num_classes; i < to * num_classes; ++i) out[i] = zero;
    };
    const auto* const chosen_or_not = reinterpret_cast<const uint8_t*>(selected);  // any byte but 0 is true
    Softmax<T> softmax(num_classes);
    Pacer pacer;
    for (int64_t row = begin; row < end;) {
        int64_t chosen[kAhead], count = 0, stop = row;
        for (; stop < end && count < kAhead; ++stop) {
            if (chosen_or_not[stop] == 0) continue;
            prefetch(logits + stop * num_classes, num_classes);
            chosen[count++] = stop;
        }
        if (pacer.cancelled((stop - row + 4 * count) * num_classes / 4 + 16)) return;
        for (int64_t i = 0; i < count; row = chosen[i++] + 1) {
            clear(row, chosen[i]);
            softmax.run(logits + chosen[i] * num_classes);
            softmax.write_gradient(labels[chosen[i]], scale, out + chosen[i] * num_classes);
        }
        clear(row, stop);
        row = stop;
    }
}

}  // namespace fastssd::FASTSSD_ISA
