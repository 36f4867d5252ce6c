// From the network's outputs to the few boxes left. Most rows are background: a row is skipped unless its largest
// foreground logit can pass the score threshold against the largest logit of all, before any exponential. What passes
// becomes a candidate (score, anchor, class); candidates are sorted by falling score and then by class, decoded only
// when their turn comes, and each class runs through NMS. The kept of all classes are sorted once more, and the best
// are written.
//
// Source: SSD paper, section 3.7 (inference time).
#pragma once

#include "dispatch.h"
#include "ops/boxes.h"
#include "ops/coding.h"
#include "ops/nms.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

template <typename T>
class Postprocessor {
  public:
    explicit Postprocessor(const PostprocessTask<T>& task)
        : task_(task),
          limit_(round_down(T(), task.score_threshold)),
          logit_limit_(least_logit(task.activation, task.score_threshold)),
          exps_(task.num_classes),
          candidates_(0),
          scratch_(0),
          ends_(task.num_classes) {}

    void run(int64_t image) {
        count_ = 0;
        collect_candidates(image);
        scratch_.reserve(count_, 0);
        const Candidate* const order = sort_entries(candidates_.data(), scratch_.data(), count_);
        const bool in_scratch = order == scratch_.data();
        Candidate* const by_class = in_scratch ? candidates_.data() : scratch_.data();
        split_by_class(order, by_class);
        const int64_t kept = suppress(image, by_class);
        write(image, sort_entries(by_class, in_scratch ? scratch_.data() : candidates_.data(), kept), kept);
    }

  private:
    using Candidate = Entry<KeyOf<T>>;  // index: anchor * num_classes + class

    // What a foreground logit (softmax: less the largest logit of its row) must exceed to have a chance. Lower than the
    // exact bound by more than the rounding of the score can be.
    static T least_logit(Activation activation, double threshold) {
        constexpr double kSlack = 1e-3;
        const double least = larger(threshold - 4.0 * std::numeric_limits<T>::epsilon(), 0.0);
        switch (activation) {
            case Activation::softmax:
                return static_cast<T>(std::log(threshold) - kSlack);
            case Activation::sigmoid:
                return static_cast<T>(std::log(least / (1 - least)) - kSlack);
            default:
                return round_down(T(), threshold);
        }
    }

    void collect_candidates(int64_t image) {
        const int64_t num_classes = task_.num_classes;
        Pacer pacer;
        for (int64_t a = 0; a < task_.num_anchors; ++a) {
            const T* const logits = task_.logits + (image * task_.num_anchors + a) * num_classes;
            if (pacer.cancelled(num_classes)) return;
            const T most = max_of(logits + 1, num_classes - 1);
            const T base = task_.activation == Activation::softmax ? larger(logits[0], most) : T(0);
            if (!(most - base > logit_limit_)) continue;
            candidates_.reserve(count_ + num_classes, count_);
            add_candidates(logits, base, a * num_classes);
            if (pacer.cancelled(8 * num_classes)) return;
        }
    }

    void add_candidates(const T* logits, T base, int64_t first_index) {
        const int64_t num_classes = task_.num_classes;
        const auto add = [&](int64_t c, T score) {
            if (score > limit_) candidates_[count_++] = {falling_key(score), static_cast<uint32_t>(first_index + c)};
        };
        if (task_.activation == Activation::softmax) {
            const T sum = softmax_sum(logits, base);
            for (int64_t c = 1; c < num_classes; ++c) {
                if (logits[c] - base > logit_limit_) add(c, exps_[c] / sum);
            }
        } else if (task_.activation == Activation::sigmoid) {
            for (int64_t c = 1; c < num_classes; ++c) {
                if (logits[c] > logit_limit_) add(c, T(1) / (T(1) + std::exp(-logits[c])));
            }
        } else {
            for (int64_t c = 1; c < num_classes; ++c) add(c, logits[c]);
        }
    }

    // The sum of exp(logit - base); exps_ holds the terms. It runs in lanes whose number is fixed: its rounding is the
    // same on every instruction set.
    T softmax_sum(const T* logits, T base) {
        constexpr int64_t kLanes = 8;
        const int64_t num_classes = task_.num_classes;
        T sums[kLanes] = {};
        for (int64_t c = 0; c < num_classes; ++c) {
            exps_[c] = std::exp(logits[c] - base);
            sums[c % kLanes] += exps_[c];
        }
        return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    }

    // Stable, so that each class is in order of falling score and rising anchor. ends_[c] becomes the end of class c.
    void split_by_class(const Candidate* order, Candidate* by_class) {
        const int64_t num_classes = task_.num_classes;
        for (int64_t c = 0; c < num_classes; ++c) ends_[c] = 0;
        for (int64_t i = 0; i < count_; ++i) ++ends_[order[i].index % num_classes];
        int64_t before = 0;
        for (int64_t c = 0; c < num_classes; ++c) {
            const int64_t size = ends_[c];
            ends_[c] = before;
            before += size;
        }
        for (int64_t i = 0; i < count_; ++i) by_class[ends_[order[i].index % num_classes]++] = order[i];
    }

    // Replaces the candidates by those that NMS keeps, class after class; returns how many.
    int64_t suppress(int64_t image, Candidate* by_class) {
        const T limit = round_down(T(), task_.iou_threshold);
        int64_t largest = 0;
        for (int64_t c = 1; c < task_.num_classes; ++c) largest = larger(largest, ends_[c] - ends_[c - 1]);
        Suppressor<T> suppressor(smaller(largest, task_.topk));
        int64_t kept = 0, begin = 0;
        for (int64_t c = 0; c < task_.num_classes; ++c) {
            const Candidate* const members = by_class + begin;
            const int64_t size = ends_[c] - begin;
            int64_t taken = 0;
            for (int64_t i = 0; i < size && taken < task_.topk; ++i) {
                T box[4];
                decode_candidate(image, members[i].index, box);
                if (usable(box, T(0))) suppressor.set(taken++, box, static_cast<uint32_t>(i));
            }
            // In place: no more are kept than were read.
            if (!suppressor.run(taken, limit, [&](uint32_t i) { by_class[kept++] = members[i]; })) return 0;
            begin = ends_[c];
        }
        return kept;
    }

    void write(int64_t image, const Candidate* order, int64_t kept) {
        const int64_t room = task_.max_detections;
        const int64_t count = smaller(kept, room);
        for (int64_t place = 0; place < room; ++place) {
            const int64_t to = image * room + place;
            T* const box = task_.boxes + 4 * to;
            if (place < count) {
                decode_candidate(image, order[place].index, box);
                task_.scores[to] = value_of_falling_key<T>(order[place].key);
                task_.labels[to] = order[place].index % task_.num_classes;
                task_.anchor_idx[to] = order[place].index / task_.num_classes;
            } else {
                box[0] = box[1] = box[2] = box[3] = T(0);
                task_.scores[to] = T(0);
                task_.labels[to] = task_.anchor_idx[to] = -1;
            }
        }
        task_.counts[image] = count;
    }

    void decode_candidate(int64_t image, int64_t index, T* box) const {
        const int64_t anchor = index / task_.num_classes;
        decode(task_.deltas + 4 * (image * task_.num_anchors + anchor), task_.anchors + 4 * anchor,
               static_cast<T>(task_.variances.center), static_cast<T>(task_.variances.size), box);
        if (is_finite(task_.clip_height)) {
            clip_boxes_to_image(box, static_cast<T>(task_.clip_height), static_cast<T>(task_.clip_width), 0, 1, box);
        }
    }

    const PostprocessTask<T>& task_;
    const T limit_, logit_limit_;
    Buffer<T> exps_;
    Buffer<Candidate> candidates_, scratch_;
    Buffer<int64_t> ends_;
    int64_t count_ = 0;
};

template <typename T>
void postprocess_detections(const PostprocessTask<T>& task, int64_t begin, int64_t end) {
    Postprocessor<T> postprocessor(task);
    for (int64_t image = begin; image < end; ++image) postprocessor.run(image);
}

}  // namespace fastssd::FASTSSD_ISA
