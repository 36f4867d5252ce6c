// From the network's outputs to detections. A row is the logits of an anchor. Most rows are background: before any
// exponential, a row is skipped unless its largest foreground logit is so far above the background logit that a score
// can pass the threshold. Scores that pass become candidates (score, anchor, class). Once there are many, only the best
// matter: the threshold rises to the score of the best few hundred, and rows are also skipped by a bound of their sum
// of exponentials. Candidates are then taken by descending score, decoded a few at a time, and compared with the kept
// boxes of their class, until enough are kept. In the rare case that the best were not enough, all starts again with
// more.
//
// Source: SSD paper, section 3.1.
#pragma once

#include "geometry/box.h"
#include "geometry/kept_boxes.h"
#include "ops/coding.h"
#include "support/buffer.h"
#include "support/exp.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/prefetch.h"
#include "support/select.h"
#include "support/simd.h"
#include "support/sort.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
class Postprocessor {
  public:
    explicit Postprocessor(const PostprocessDetectionsTask<T>& task)
        : task_(task),
          topk_(smaller(task.topk, task.num_anchors)),
          width_((task.num_classes + kLanes - 1) / kLanes * kLanes),
          center_variance_(static_cast<T>(task.variances.center)),
          size_variance_(static_cast<T>(task.variances.size)),
          clip_height_(static_cast<T>(task.clip_height)),
          clip_width_(static_cast<T>(task.clip_width)),
          clips_(is_finite(task.clip_height)),
          row_(width_),
          values_(width_),
          keys_(kFirstCandidates),
          indices_(kFirstCandidates),
          entries_(0),
          scratch_(0),
          taken_(task.num_classes),
          kept_boxes_(task.num_classes, task.iou_threshold),
          kept_(kFirstKept) {
        for (int64_t i = task.num_classes; i < width_; ++i) row_[i] = -kInf<T>;
    }

    void run(int64_t image) {
        image_ = image;
        const bool may_fill = topk_ * (task_.num_classes - 1) >= task_.max_detections;
        int64_t best =
            may_fill ? task_.max_detections + task_.max_detections / 4 + 64 : task_.num_anchors * task_.num_classes;
        while (!try_best(best)) best *= 16;
        write();
    }

  private:
    using Candidate = Entry<KeyOf<T>>;  // index: anchor * num_classes + class
    using Key = SignedKeyOf<T>;
    static constexpr int64_t kLanes = Lanes<T>::kCount, kBlock = 16;
    static constexpr T kLeastBelow = -16;  // of logits below the largest of their row: see spread()
    static constexpr int64_t kFirstCandidates = 1024, kFirstKept = 256;
    static constexpr int64_t kMany = 8192;    // candidates: with fewer it does not pay to look for the best
    static constexpr int64_t kSummed = 4096;  // numbers that are added in T

    // --- rows and scores above the threshold

    // Scores must exceed `limit`. Sets what logits must exceed so that a score can: below the exact bounds by more than
    // the rounding of a score.
    void set_limit(T limit) {
        constexpr double kSlack = 2e-3;
        const double classes = static_cast<double>(task_.num_classes);
        const double rounding = (smaller(classes, double{kSummed}) + 8) * std::numeric_limits<T>::epsilon();
        const double least = static_cast<double>(limit) * (1 - rounding);
        limit_ = limit;
        if (task_.activation == Activation::none) {
            logit_limit_ = limit;
        } else if (limit < std::numeric_limits<T>::min()) {
            logit_limit_ = -kInf<T>;
            spread_limit_ = kInf<T>;
        } else {
            logit_limit_ = static_cast<T>(std::log(least / (1 - least)) - kSlack);
            // Not for very long rows, for which the sums of spread() are too coarse.
            spread_limit_ =
                classes > kSummed ? kInf<T> : static_cast<T>(kSlack + 1e-6 * classes - std::log(least * classes));
        }
    }

    void collect(int64_t best) {
        const int64_t num_classes = task_.num_classes;
        const bool softmax = task_.activation == Activation::softmax;
        const T* const first = task_.logits + image_ * task_.num_anchors * num_classes;
        Pacer pacer;
        count_ = 0;
        cut_ = false;
        int64_t full = larger(2 * best, kMany);
        set_limit(round_down(T(), task_.score_threshold));
        for (int64_t a = next_row(first, 0, pacer); a < task_.num_anchors; a = next_row(first, a + 1, pacer)) {
            std::memcpy(row_.data(), first + a * num_classes, static_cast<std::size_t>(num_classes) * sizeof(T));
            const T base = softmax ? max_lanes(row_.data(), width_).largest() : T(0);
            if (softmax && cut_ && !(spread(base) < spread_limit_)) continue;
            add_candidates(base, a * num_classes);
            if (count_ >= full) {
                cut(best);
                full = 2 * count_;
            }
        }
    }

    // The first row from `a` on that may hold a score above the limit, num_anchors if there is none. The softmax of a
    // logit is at most what it would be if its row held only it and the background.
    int64_t next_row(const T* first, int64_t a, Pacer& pacer) const {
        switch (task_.num_classes) {
            case 2:
                return next_short_row<2>(first, a, pacer);
            case 3:
                return next_short_row<3>(first, a, pacer);
            case 4:
                return next_short_row<4>(first, a, pacer);
            case 5:
                return next_short_row<5>(first, a, pacer);
            default:
                return task_.num_classes > kLanes ? next_long_row(first, a, pacer) : next_short_row<0>(first, a, pacer);
        }
    }

    int64_t next_long_row(const T* first, int64_t a, Pacer& pacer) const {
        const int64_t num_classes = task_.num_classes;
        const bool softmax = task_.activation == Activation::softmax;
        const Lanes<T> limit = Lanes<T>::all(logit_limit_);
        for (; a < task_.num_anchors && !pacer.cancelled(num_classes / 4 + 2); ++a) {
            const T* const row = first + a * num_classes;
            prefetch_behind(row, num_classes);
            const Lanes<T> background = Lanes<T>::all(softmax ? row[0] : T(0));
            if (any(above(max_lanes(row + 1, num_classes - 1) - background, limit))) return a;
        }
        return task_.num_anchors;
    }

    // kClasses is the number of classes, so that the compiler knows it, or 0.
    template <int64_t kClasses>
    int64_t next_short_row(const T* first, int64_t a, Pacer& pacer) const {
        const int64_t num_classes = kClasses == 0 ? task_.num_classes : kClasses;
        const bool softmax = task_.activation == Activation::softmax;
        for (; a < task_.num_anchors && !pacer.cancelled(2); ++a) {
            const T* const row = first + a * num_classes;
            const T background = softmax ? row[0] : T(0);
            T most = -kInf<T>;
            for (int64_t c = 1; c < num_classes; ++c) most = larger(row[c], most);
            if (most - background > logit_limit_) return a;
        }
        return task_.num_anchors;
    }

    // A lower bound of log(mean(exp(logit - base))) over row_, whose largest logit is base. With m the mean of x and
    // y = x - m, mean(exp(x)) is at least exp(m) (1 + mean(y^2) / 2 + mean(y^3) / 6), and at least exp(m); and
    // log(1 + e) is at least 2 e / (2 + e). Differences below kLeastBelow are raised to it: their exponentials do not
    // matter.
    T spread(T base) const {
        const T n = static_cast<T>(task_.num_classes), padding = static_cast<T>(width_) - n;
        const Lanes<T> top = Lanes<T>::all(base), least = Lanes<T>::all(kLeastBelow), zero = Lanes<T>::all(T(0));
        Lanes<T> sums = zero;
        for (int64_t begin = 0; begin < width_; begin += kLanes) {
            sums = sums + larger(Lanes<T>::load(row_.data() + begin) - top, least);
        }
        const T mean = (sums.sum() - padding * kLeastBelow) / n;
        const Lanes<T> center = Lanes<T>::all(mean);
        Lanes<T> squares = zero, cubes = zero;
        for (int64_t begin = 0; begin < width_; begin += kLanes) {
            const Lanes<T> x = larger(Lanes<T>::load(row_.data() + begin) - top, least) - center;
            squares = squares + x * x;
            cubes = cubes + x * x * x;
        }
        const T x = kLeastBelow - mean;
        const T excess = (squares.sum() - padding * x * x) / (2 * n) + (cubes.sum() - padding * x * x * x) / (6 * n);
        return excess > 0 ? mean + 2 * excess / (2 + excess) : mean;
    }

    // --- candidates

    // Fills values_ and returns the divisor: the scores of row_ are values_ / divisor.
    T fill_values(T base) {
        T* FASTSSD_RESTRICT const values = values_.data();
        const T* FASTSSD_RESTRICT const row = row_.data();
        T divisor = 1;
        if (task_.activation == Activation::softmax) {
            for (int64_t i = 0; i < width_; ++i) values[i] = exp_of(row[i] - base);
            double sum = 0;  // of parts so short that their sums in T are precise
            for (int64_t begin = 0; begin < width_; begin += kSummed) {
                const int64_t end = smaller(begin + kSummed, width_);
                Lanes<T> sums = Lanes<T>::all(T(0));
                for (int64_t i = begin; i < end; i += kLanes) sums = sums + Lanes<T>::load(values + i);
                sum += static_cast<double>(sums.sum());
            }
            divisor = static_cast<T>(sum);
        } else if (task_.activation == Activation::sigmoid) {
            for (int64_t i = 0; i < width_; ++i) values[i] = T(1) / (T(1) + exp_of(-row[i]));
        } else {
            std::memcpy(values, row, static_cast<std::size_t>(width_) * sizeof(T));
        }
        values[0] = -1;  // the background is never detected
        return divisor;
    }

    void add_candidates(T base, int64_t first_index) {
        const T divisor = fill_values(base);
        const T least = limit_ * divisor;  // rounding is monotone: below this no score exceeds limit_
        keys_.reserve(count_ + width_, count_);
        indices_.reserve(count_ + width_, count_);
        for (int64_t begin = 0; begin < width_; begin += kLanes) {
            const T* const values = values_.data() + begin;
            if (!any(reaches(Lanes<T>::load(values), Lanes<T>::all(least)))) continue;
            T scores[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) scores[i] = values[i] / divisor;
            int64_t count = count_;
            for (int64_t i = 0; i < kLanes; ++i) {
                std::memcpy(&keys_[count], &scores[i], sizeof(T));
                indices_[count] = static_cast<uint32_t>(first_index + begin + i);
                count += static_cast<int64_t>(scores[i] > limit_);
            }
            count_ = count;
        }
    }

    // Keeps about the best candidates, with all that are equal to the last of them, and raises the limit to match.
    void cut(int64_t best) {
        const Key least = bound_of_largest(keys_.data(), count_, best, best + best / 8, Key(0));
        int64_t left = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const Key key = keys_[i];
            keys_[left] = key;
            indices_[left] = indices_[i];
            left += static_cast<int64_t>(key >= least);
        }
        count_ = left;
        cut_ = true;
        set_limit(score_of(least - 1));
    }

    // A score passed a threshold that is not negative, so its bits, read as an integer, are in the same order.
    static T score_of(Key key) {
        T score;
        std::memcpy(&score, &key, sizeof(T));
        return score;
    }

    // --- suppression

    // False where candidates were left out and the rest were not enough.
    bool try_best(int64_t best) {
        num_kept_ = 0;
        if (task_.max_detections == 0 || topk_ == 0) return true;
        collect(best);
        entries_.reserve(count_, 0);
        scratch_.reserve(count_, 0);
        for (int64_t i = 0; i < count_; ++i) entries_[i] = {descending_key(score_of(keys_[i])), indices_[i]};
        const bool enough = suppress(sort_entries(entries_.data(), scratch_.data(), count_));
        return enough || !cut_;
    }

    // Keeps boxes by descending score until there are max_detections, and all that have the score of the last one.
    // Whether there are so many.
    bool suppress(const Candidate* order) {
        const int64_t num_classes = task_.num_classes;
        T block[BoxColumns<T>::kColumns * kBlock];
        const BoxColumns<T> boxes(block, kBlock);
        Pacer pacer;
        kept_boxes_.clear(num_classes);
        for (int64_t c = 0; c < num_classes; ++c) taken_[c] = 0;
        for (int64_t begin = 0; begin < count_; begin += kBlock) {
            const int64_t size = smaller(kBlock, count_ - begin);
            decode_block(order + begin, size, boxes);
            for (int64_t i = 0; i < size; ++i) {
                const Candidate& candidate = order[begin + i];
                if (num_kept_ >= task_.max_detections && candidate.key != kept_[num_kept_ - 1].key) return true;
                const Box<T> box(boxes, i);
                const int64_t c = candidate.index % num_classes;
                if (!finite(box) || taken_[c] == topk_) continue;
                ++taken_[c];
                if (pacer.cancelled(2 * kept_boxes_.blocks_of(c) + 20)) return true;
                if (kept_boxes_.suppress(box, c)) continue;
                kept_boxes_.add(box, c);
                kept_.reserve(num_kept_ + 1, num_kept_);
                kept_[num_kept_++] = candidate;
            }
        }
        return num_kept_ >= task_.max_detections;
    }

    static bool finite(const Box<T>& box) { return is_finite(nan_unless_finite(box.x1, box.y1, box.x2, box.y2)); }

    void write() {
        const int64_t room = task_.max_detections, count = smaller(num_kept_, room);
        order_equals(count);
        for (int64_t place = 0; place < room; ++place) {
            const int64_t to = image_ * room + place;
            T* const box = task_.boxes + 4 * to;
            if (place < count) {
                const int64_t index = kept_[place].index, anchor = index / task_.num_classes;
                decode(task_.deltas + 4 * (image_ * task_.num_anchors + anchor), task_.anchors + 4 * anchor,
                       center_variance_, size_variance_, box);
                if (clips_) clip(box, clip_height_, clip_width_, box);
                task_.scores[to] = value_of_descending_key<T>(kept_[place].key);
                task_.labels[to] = index % task_.num_classes;
                task_.anchor_idx[to] = anchor;
            } else {
                box[0] = box[1] = box[2] = box[3] = T(0);
                task_.scores[to] = T(0);
                task_.labels[to] = task_.anchor_idx[to] = -1;
            }
        }
        task_.counts[image_] = count;
    }

    // Sorts equal scores by class, then by anchor. Those equal to the last one may go beyond `count`.
    void order_equals(int64_t count) {
        const int64_t num_classes = task_.num_classes;
        for (int64_t begin = 0, end = 0; begin < count; begin = end) {
            while (end < num_kept_ && kept_[end].key == kept_[begin].key) ++end;
            if (end == begin + 1) continue;
            for (int64_t i = begin; i < end; ++i) {
                const uint32_t index = kept_[i].index;
                const int64_t place = index % num_classes * task_.num_anchors + index / num_classes;
                entries_[i - begin] = {static_cast<KeyOf<T>>(place), index};
            }
            const Candidate* const ordered = sort_entries(entries_.data(), scratch_.data(), end - begin);
            for (int64_t i = begin; i < end; ++i) kept_[i].index = ordered[i - begin].index;
        }
    }

    // Decodes the boxes of up to kBlock candidates. The loops run over a whole block, so that they vectorise.
    void decode_block(const Candidate* candidates, int64_t size, const BoxColumns<T>& boxes) const {
        T deltas[4][kBlock] = {}, anchors[4][kBlock] = {};
        for (int64_t i = 0; i < size; ++i) {
            const int64_t anchor = candidates[i].index / task_.num_classes;
            const T* const from = task_.deltas + 4 * (image_ * task_.num_anchors + anchor);
            for (int64_t k = 0; k < 4; ++k) {
                deltas[k][i] = from[k];
                anchors[k][i] = task_.anchors[4 * anchor + k];
            }
        }
        T* const lows[] = {boxes.x1, boxes.y1};
        T* const highs[] = {boxes.x2, boxes.y2};
        const T sizes[] = {clip_width_, clip_height_};
        for (int64_t axis = 0; axis < 2; ++axis) {
            T* FASTSSD_RESTRICT const low = lows[axis];
            T* FASTSSD_RESTRICT const high = highs[axis];
            for (int64_t i = 0; i < kBlock; ++i) {
                decode(deltas[axis][i], deltas[2 + axis][i], anchors[axis][i], anchors[2 + axis][i], center_variance_,
                       size_variance_, low[i], high[i]);
            }
            if (!clips_) continue;
            for (int64_t i = 0; i < kBlock; ++i) {
                low[i] = clip(low[i], sizes[axis]);
                high[i] = clip(high[i], sizes[axis]);
            }
        }
        for (int64_t i = 0; i < kBlock; ++i) {
            boxes.area[i] = area_of(boxes.x1[i], boxes.y1[i], boxes.x2[i], boxes.y2[i]);
        }
    }

    const PostprocessDetectionsTask<T>& task_;
    const int64_t topk_;
    const int64_t width_;  // of a row: the number of classes, rounded up to whole kLanes
    const T center_variance_, size_variance_, clip_height_, clip_width_;
    const bool clips_;
    int64_t image_ = 0;

    T limit_ = 0, logit_limit_ = 0, spread_limit_ = 0;  // set_limit()
    Buffer<T> row_, values_;
    bool cut_ = false;  // whether candidates were left out

    int64_t count_ = 0;
    Buffer<Key> keys_;
    Buffer<uint32_t> indices_;
    Buffer<Candidate> entries_, scratch_;

    Buffer<int64_t> taken_;  // of each class: how many candidates were compared so far, at most topk_
    KeptBoxes<T> kept_boxes_;
    int64_t num_kept_ = 0;
    Buffer<Candidate> kept_;
};

template <typename T>
void postprocess_detections(const PostprocessDetectionsTask<T>& task, int64_t begin, int64_t end) {
    Postprocessor<T> postprocessor(task);
    for (int64_t image = begin; image < end; ++image) postprocessor.run(image);
}

}  // namespace fastssd::FASTSSD_ISA
