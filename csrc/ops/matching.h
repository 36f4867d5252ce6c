// Which anchor is responsible for which ground truth. The anchors are turned into columns once (the plan). Per image
// one pass over blocks of anchors, ground truths inside: IoU of the block with a ground truth in one vectorised loop,
// the best ground truth of each anchor kept beside it, and the block's maximum compared with the ground truth's best so
// far. Then the threshold, then the forcing. Bipartite forcing takes the best pair left G times; ground truths whose
// best anchor is taken go on along a short list of their next best anchors, rebuilt when it runs out.
//
// Source: SSD paper, section 2.2, "Matching strategy".
#pragma once

#include "dispatch.h"
#include "ops/boxes.h"
#include "ops/coding.h"
#include "ops/iou.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kBackground = -1, kIgnored = -2;
constexpr int64_t kMatchBlock = 512;

template <typename T>
int64_t anchor_plan_size(int64_t num_anchors) {
    return BoxColumns<T>::kColumns * num_anchors;
}

template <typename T>
void plan_anchors(const T* anchors, int64_t num_anchors, T* plan) {
    BoxColumns<T> columns(plan, num_anchors);
    for (int64_t a = 0; a < num_anchors; ++a) columns.set(a, anchors + 4 * a);
}

template <typename T>
void iou_with_anchors(const BoxColumns<T>& anchors, int64_t begin, int64_t size, const Box<T>& box,
                      T* FASTSSD_RESTRICT out) {
    for (int64_t i = 0; i < size; ++i) out[i] = iou_of(box, Box<T>(anchors, begin + i));
}

// What a ground truth would like most: its best anchor and the IoU with it.
template <typename T>
struct Claim {
    T iou;
    int64_t anchor;
};

template <typename T>
class Matcher {
  public:
    explicit Matcher(const MatchTask<T>& task)
        : task_(task),
          anchors_(const_cast<T*>(task.plan), task.num_anchors),
          best_gt_(task.num_anchors),
          own_iou_(task.iou == nullptr ? task.num_anchors : 0) {}

    void match(int64_t image) {
        const int64_t num_anchors = task_.num_anchors;
        const T* const gt_boxes = task_.gt_boxes + 4 * task_.offsets[image];
        const int64_t num_gt = task_.offsets[image + 1] - task_.offsets[image];
        int64_t* const gt_idx = task_.gt_idx + image * num_anchors;
        T* const iou = task_.iou == nullptr ? own_iou_.data() : task_.iou + image * num_anchors;

        if (num_gt == 0) {
            for (int64_t a = 0; a < num_anchors; ++a) {
                gt_idx[a] = kBackground;
                iou[a] = T(0);
            }
            return;
        }
        Buffer<Claim<T>> claims(num_gt);
        for (int64_t g = 0; g < num_gt; ++g) claims[g] = {T(-1), -1};
        for (int64_t begin = 0; begin < num_anchors; begin += kMatchBlock) {
            match_block(begin, smaller(kMatchBlock, num_anchors - begin), gt_boxes, num_gt, iou, claims.data());
            if (pacer_.cancelled(kMatchBlock * num_gt / 2)) return;
        }
        apply_thresholds(iou, gt_idx);
        if (num_anchors == 0) return;
        switch (task_.force_match) {
            case ForceMatch::none:
                break;
            case ForceMatch::bipartite:
                force_bipartite(gt_boxes, num_gt, claims.data(), iou, gt_idx);
                break;
            case ForceMatch::best:
                for (int64_t g = 0; g < num_gt; ++g) assign(claims[g], g, iou, gt_idx);
                break;
            case ForceMatch::low_quality:
                force_low_quality(gt_boxes, num_gt, claims.data(), gt_idx);
                break;
        }
    }

  private:
    using Index = typename Bits<T>::Signed;  // as wide as T, so that index and IoU share a vectorised loop

    void match_block(int64_t begin, int64_t size, const T* gt_boxes, int64_t num_gt, T* all_iou, Claim<T>* claims) {
        T row[kMatchBlock];
        T* FASTSSD_RESTRICT const iou = all_iou + begin;
        Index* FASTSSD_RESTRICT const best_gt = best_gt_.data() + begin;
        for (int64_t i = 0; i < size; ++i) {
            iou[i] = T(0);
            best_gt[i] = 0;
        }
        for (int64_t g = 0; g < num_gt; ++g) {
            iou_with_anchors(anchors_, begin, size, Box<T>(gt_boxes + 4 * g), row);
            const Index index = static_cast<Index>(g);
            for (int64_t i = 0; i < size; ++i) {
                const bool better = row[i] > iou[i];
                iou[i] = better ? row[i] : iou[i];
                best_gt[i] = better ? index : best_gt[i];
            }
            if (task_.force_match == ForceMatch::none) continue;
            const T most = max_of(row, size);
            if (most > claims[g].iou) claims[g] = {most, begin + index_of(row, most)};
        }
    }

    void apply_thresholds(const T* iou, int64_t* gt_idx) const {
        const T positive = round_up(T(), task_.iou_threshold), background = round_up(T(), task_.background_threshold);
        for (int64_t a = 0; a < task_.num_anchors; ++a) {
            const int64_t rest = iou[a] < background ? kBackground : kIgnored;
            gt_idx[a] = iou[a] >= positive ? static_cast<int64_t>(best_gt_[a]) : rest;
        }
    }

    static void assign(const Claim<T>& claim, int64_t gt, T* iou, int64_t* gt_idx) {
        gt_idx[claim.anchor] = gt;
        iou[claim.anchor] = claim.iou;
    }

    void force_bipartite(const T* gt_boxes, int64_t num_gt, Claim<T>* claims, T* iou, int64_t* gt_idx) {
        const int64_t num_anchors = task_.num_anchors;
        Buffer<bool> taken(num_anchors);
        std::memset(taken.data(), 0, static_cast<std::size_t>(num_anchors));
        Runners runners(num_gt);
        for (int64_t left = smaller(num_anchors, num_gt); left > 0; --left) {
            int64_t gt = -1;
            for (int64_t g = 0; g < num_gt; ++g) {
                if (claims[g].anchor != kServed && (gt < 0 || before(claims[g], claims[gt]))) gt = g;
            }
            const int64_t anchor = claims[gt].anchor;
            assign(claims[gt], gt, iou, gt_idx);
            taken[anchor] = true;
            claims[gt].anchor = kServed;
            if (left == 1 || pacer_.cancelled(2 * num_gt)) return;
            for (int64_t g = 0; g < num_gt; ++g) {
                if (claims[g].anchor != anchor) continue;
                claims[g] = next_claim(runners, g, Box<T>(gt_boxes + 4 * g), taken);
                if (pacer_.cancelled(1)) return;
            }
        }
    }

    static constexpr int64_t kServed = -1;

    static bool before(const Claim<T>& a, const Claim<T>& b) {
        return a.iou > b.iou || (a.iou == b.iou && a.anchor < b.anchor);
    }

    // For each ground truth that lost its best anchor, a few next best ones, best first.
    struct Runners {
        static constexpr int64_t kLength = 64;

        struct Span {
            int64_t next, end;
        };
        Buffer<Claim<T>> claims;
        Buffer<Span> spans;

        explicit Runners(int64_t num_gt) : claims(0), spans(num_gt) {
            for (int64_t g = 0; g < num_gt; ++g) spans[g] = {0, 0};
        }
    };

    // The best claim on an anchor that is not taken; there must be one.
    Claim<T> next_claim(Runners& runners, int64_t gt, const Box<T>& box, const Buffer<bool>& taken) {
        auto& span = runners.spans[gt];
        for (;;) {
            while (span.next < span.end) {
                const Claim<T> claim = runners.claims[gt * Runners::kLength + span.next++];
                if (!taken[claim.anchor]) return claim;
            }
            runners.claims.reserve((gt + 1) * Runners::kLength, gt * Runners::kLength);
            span = {0, list_best(box, taken, runners.claims.data() + gt * Runners::kLength)};
        }
    }

    int64_t list_best(const Box<T>& box, const Buffer<bool>& taken, Claim<T>* list) {
        T row[kMatchBlock];
        int64_t length = 0;
        for (int64_t begin = 0; begin < task_.num_anchors; begin += kMatchBlock) {
            const int64_t size = smaller(kMatchBlock, task_.num_anchors - begin);
            iou_with_anchors(anchors_, begin, size, box, row);
            for (int64_t i = 0; i < size; ++i) {
                const bool full = length == Runners::kLength;
                if (taken[begin + i] || (full && !(row[i] > list[length - 1].iou))) continue;
                int64_t to = full ? length - 1 : length++;
                for (; to > 0 && list[to - 1].iou < row[i]; --to) list[to] = list[to - 1];
                list[to] = {row[i], begin + i};
            }
        }
        pacer_.cancelled(2 * task_.num_anchors);
        return length;
    }

    // Every anchor that is as good for a ground truth as any is positive, for its own best ground truth.
    void force_low_quality(const T* gt_boxes, int64_t num_gt, const Claim<T>* claims, int64_t* gt_idx) {
        T row[kMatchBlock];
        for (int64_t begin = 0; begin < task_.num_anchors; begin += kMatchBlock) {
            const int64_t size = smaller(kMatchBlock, task_.num_anchors - begin);
            for (int64_t g = 0; g < num_gt; ++g) {
                iou_with_anchors(anchors_, begin, size, Box<T>(gt_boxes + 4 * g), row);
                for (int64_t i = 0; i < size; ++i) {
                    if (row[i] == claims[g].iou) gt_idx[begin + i] = static_cast<int64_t>(best_gt_[begin + i]);
                }
            }
            if (pacer_.cancelled(size * num_gt)) return;
        }
    }

    const MatchTask<T>& task_;
    const BoxColumns<T> anchors_;
    Buffer<Index> best_gt_;
    Buffer<T> own_iou_;
    Pacer pacer_;
};

template <typename T>
void match_anchors(const MatchTask<T>& task, int64_t begin, int64_t end) {
    Matcher<T> matcher(task);
    for (int64_t image = begin; image < end; ++image) matcher.match(image);
}

template <typename T>
void assign_targets(const AssignTask<T>& task, int64_t begin, int64_t end) {
    const int64_t num_anchors = task.match.num_anchors;
    const T center = static_cast<T>(task.variances.center), size = static_cast<T>(task.variances.size);
    Matcher<T> matcher(task.match);
    for (int64_t image = begin; image < end; ++image) {
        matcher.match(image);
        if (poll()) return;  // gt_idx is not whole
        const int64_t first_gt = task.match.offsets[image];
        for (int64_t a = image * num_anchors, anchor = 0; anchor < num_anchors; ++a, ++anchor) {
            const int64_t gt_idx = task.match.gt_idx[a];
            T* const deltas = task.deltas + 4 * a;
            if (gt_idx >= 0) {
                const int64_t gt = first_gt + gt_idx;
                task.labels[a] = task.gt_labels[gt];
                encode(task.match.gt_boxes + 4 * gt, task.anchors + 4 * anchor, center, size, deltas);
            } else {
                task.labels[a] = gt_idx == kIgnored ? -1 : 0;
                deltas[0] = deltas[1] = deltas[2] = deltas[3] = T(0);
            }
        }
    }
}

}  // namespace fastssd::FASTSSD_ISA
