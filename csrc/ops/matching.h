// Which anchor is responsible for which ground-truth box. The anchors are in blocks of 16, and 16 blocks are a group;
// blocks and groups have bounds of the IoU (geometry/anchor_index.h). Each ground-truth box first claims the best
// anchor of the block with the largest bound. Then it is compared, group by group (a group fits the first-level cache),
// with the blocks whose bound says that it may improve an anchor there or its claim. match_anchors writes every IoU, so
// these are all blocks that the box overlaps, and the anchors are visited in the order of the caller, so that outputs
// are written once and in order. assign_targets needs only what reaches the lowest threshold, which few blocks do; they
// are visited in an order that keeps anchors of similar place and size together. Then the forcing. Bipartite forcing
// takes the best claim from a heap; a ground-truth box whose anchor is taken already goes on with a short list of its
// next best anchors, which is searched for again when it is used up.
//
// Source: SSD paper, section 2.2, "Matching strategy".
#pragma once

#include "geometry/anchor_index.h"
#include "geometry/box.h"
#include "ops/coding.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/simd.h"
#include "support/sort.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kBackground = -1, kIgnored = -2;

// The anchors in two orders.
template <typename T>
struct MatchPlan {
    AnchorIndex<T> divided;   // anchors of similar place and size together
    AnchorIndex<T> in_order;  // as the caller has them

    MatchPlan(void* memory, int64_t num_anchors)
        : divided(memory, num_anchors),
          in_order(static_cast<char*>(memory) + AnchorIndex<T>::bytes(num_anchors), num_anchors) {}
};

template <typename T>
int64_t plan_anchors(const PlanAnchorsTask<T>& task) {
    if (task.plan != nullptr) {
        MatchPlan<T> plan(task.plan, task.num_anchors);
        plan.divided.build(task.anchors, true);
        plan.in_order.build(task.anchors, false);
    }
    return 2 * AnchorIndex<T>::bytes(task.num_anchors);
}

// What becomes of an anchor with this IoU with its best ground-truth box.
template <typename T>
struct Thresholds {
    using Index = typename Bits<T>::Signed;  // as wide as T, so that index and IoU share a vectorised loop

    T positive, background;

    // gt_idx
    FASTSSD_INLINE Index verdict(T iou, Index best_gt) const {
        const Index rest = iou < background ? kBackground : kIgnored;
        return iou >= positive ? best_gt : rest;
    }
};

// The outputs of match_anchors for an image.
template <typename T>
class MatchRow {
  public:
    static constexpr bool kEveryIou = true;

    MatchRow(const MatchAnchorsTask<T>& task, int64_t image)
        : num_anchors_(task.num_anchors),
          gt_idx_(task.gt_idx + image * num_anchors_),
          iou_(task.iou + image * num_anchors_) {}

    static const AnchorIndex<T>& order(const MatchPlan<T>& plan) { return plan.in_order; }

    // Nothing to clear where there are ground-truth boxes: then every group puts all its anchors.
    void clear() {}
    void clear_without_boxes() {
        for (int64_t a = 0; a < num_anchors_; ++a) gt_idx_[a] = kBackground;
        for (int64_t a = 0; a < num_anchors_; ++a) iou_[a] = T(0);
    }

    template <typename Index>
    void put_group(const AnchorBlock<T>*, int64_t first, int64_t size, const T* best, const Index* best_gt,
                   Thresholds<T> thresholds) {
        int64_t* FASTSSD_RESTRICT const gt_idx = gt_idx_ + first;
        for (int64_t i = 0; i < size; ++i) gt_idx[i] = thresholds.verdict(best[i], best_gt[i]);
        std::memcpy(iou_ + first, best, static_cast<std::size_t>(size) * sizeof(T));
    }

    void put(int64_t anchor, int64_t gt_idx, T iou) {
        gt_idx_[anchor] = gt_idx;
        iou_[anchor] = iou;
    }

  private:
    const int64_t num_anchors_;
    int64_t* FASTSSD_RESTRICT const gt_idx_;
    T* FASTSSD_RESTRICT const iou_;
};

// The outputs of assign_targets for an image.
template <typename T>
class TargetRow {
  public:
    static constexpr bool kEveryIou = false;

    TargetRow(const AssignTargetsTask<T>& task, int64_t image)
        : num_anchors_(task.match.num_anchors),
          anchors_(task.anchors),
          gt_boxes_(task.match.gt_boxes + 4 * task.match.offsets[image]),
          gt_labels_(task.gt_labels + task.match.offsets[image]),
          center_(static_cast<T>(task.variances.center)),
          size_(static_cast<T>(task.variances.size)),
          gt_idx_(task.match.gt_idx + image * num_anchors_),
          labels_(task.labels + image * num_anchors_),
          deltas_(task.deltas + 4 * image * num_anchors_) {}

    static const AnchorIndex<T>& order(const MatchPlan<T>& plan) { return plan.divided; }

    void clear() {
        for (int64_t a = 0; a < num_anchors_; ++a) gt_idx_[a] = kBackground;
        for (int64_t a = 0; a < num_anchors_; ++a) labels_[a] = 0;
        for (int64_t i = 0; i < 4 * num_anchors_; ++i) deltas_[i] = T(0);
    }
    void clear_without_boxes() { clear(); }

    template <typename Index>
    void put_group(const AnchorBlock<T>* blocks, int64_t, int64_t size, const T* best, const Index* best_gt,
                   Thresholds<T> thresholds) {
        for (int64_t begin = 0; begin < size; begin += kBlock, ++blocks) {
            if (at_least(best + begin, thresholds.background) == 0) continue;  // true of nearly all blocks
            for (int64_t i = 0; i < smaller(kBlock, size - begin); ++i) {
                put(blocks->anchor[i], thresholds.verdict(best[begin + i], best_gt[begin + i]), best[begin + i]);
            }
        }
    }

    void put(int64_t anchor, int64_t gt_idx, T) {
        gt_idx_[anchor] = gt_idx;
        if (gt_idx < 0) {
            labels_[anchor] = gt_idx == kIgnored ? -1 : 0;
        } else {
            labels_[anchor] = gt_labels_[gt_idx];
            encode(gt_boxes_ + 4 * gt_idx, anchors_ + 4 * anchor, center_, size_, deltas_ + 4 * anchor);
        }
    }

  private:
    const int64_t num_anchors_;
    const T* const anchors_;
    const T* const gt_boxes_;
    const int64_t* const gt_labels_;
    const T center_, size_;
    int64_t* FASTSSD_RESTRICT const gt_idx_;
    int64_t* FASTSSD_RESTRICT const labels_;
    T* FASTSSD_RESTRICT const deltas_;
};

// The best anchor of a ground-truth box and the IoU with it, or no anchor where the box overlaps none.
template <typename T>
struct Claim {
    static constexpr int64_t kNoAnchor = -1;

    T iou = T(0);
    int64_t anchor = kNoAnchor;

    bool before(const Claim& other) const { return iou > other.iou || (iou == other.iou && anchor < other.anchor); }

    // The smallest IoU that can improve this claim.
    T least_iou() const { return larger(iou, std::numeric_limits<T>::denorm_min()); }
};

template <typename T, typename Row>
class Matcher {
  public:
    explicit Matcher(const MatchAnchorsTask<T>& task)
        : task_(task),
          plan_(const_cast<void*>(task.plan), task.num_anchors),
          anchors_(Row::order(plan_)),
          thresholds_{round_up(T(), task.iou_threshold), round_up(T(), task.background_threshold)},
          keep_best_(task.force_match == ForceMatch::low_quality),
          floor_(Row::kEveryIou || keep_best_ ? T(0) : just_below(thresholds_.background)),
          every_group_(Row::kEveryIou || keep_best_ || thresholds_.verdict(floor_, 0) != kBackground),
          best_(keep_best_ ? anchors_.num_groups * kGroup : kGroup),
          best_gt_(keep_best_ ? anchors_.num_groups * kGroup : kGroup),
          taken_(task.num_anchors) {
        std::memset(taken_.data(), 0, static_cast<std::size_t>(task.num_anchors));
    }

    void match(int64_t image, Row row) {
        const T* const gt_boxes = task_.gt_boxes + 4 * task_.offsets[image];
        const int64_t num_gt = task_.offsets[image + 1] - task_.offsets[image];
        if (num_gt == 0 || task_.num_anchors == 0) return row.clear_without_boxes();

        row.clear();
        Buffer<Seeker> seekers(num_gt);
        Buffer<uint32_t> visiting(num_gt);  // the ground-truth boxes that the group may matter to
        for (int64_t g = 0; g < num_gt; ++g) {
            seekers[g] = first_claim(Box<T>(gt_boxes + 4 * g));
            if (pacer_.cancelled(20 * anchors_.num_rows)) return;
        }
        for (int64_t group = 0; group < anchors_.num_groups; ++group) {
            if (group % kBlock == 0) {
                const Bounds<T>& bounds = anchors_.of_groups[group / kBlock];
                for (int64_t g = 0; g < num_gt; ++g) seekers[g].choose_groups(bounds, floor_);
            }
            int64_t num_visiting = 0;
            for (int64_t g = 0; g < num_gt; ++g) {
                visiting[num_visiting] = static_cast<uint32_t>(g);
                num_visiting += static_cast<int64_t>(seekers[g].groups >> group % kBlock & 1);
            }
            if (num_visiting > 0 || every_group_) {
                match_group(group, seekers.data(), visiting.data(), num_visiting, row);
            }
            if (pacer_.cancelled(2 * num_gt + 60 * num_visiting + 60)) return;
        }

        Buffer<Claim<T>> claims(num_gt);
        for (int64_t g = 0; g < num_gt; ++g) claims[g] = seekers[g].claim;
        switch (task_.force_match) {
            case ForceMatch::none:
                break;
            case ForceMatch::bipartite:
                force_bipartite(gt_boxes, num_gt, claims.data(), row);
                break;
            case ForceMatch::best:
                for (int64_t g = 0; g < num_gt; ++g) {
                    row.put(claims[g].anchor == Claim<T>::kNoAnchor ? 0 : claims[g].anchor, g, claims[g].iou);
                }
                break;
            case ForceMatch::low_quality:
                force_low_quality(gt_boxes, num_gt, claims.data(), row);
                break;
        }
    }

  private:
    using Index = typename Thresholds<T>::Index;
    static constexpr int64_t kGroup = kBlock * kBlock;

    static float next_down(float x) { return nextafterf(x, -kInf<float>); }
    static double next_down(double x) { return nextafter(x, -kInf<double>); }
    static T just_below(T threshold) { return threshold > T(0) ? next_down(threshold) : T(0); }

    // A ground-truth box on its way through the anchors.
    struct Seeker {
        Box<T> box;
        Claim<T> claim;   // the best so far
        T least_iou;      // that may improve the claim; infinity where claims are not needed
        uint64_t groups;  // a bit for each group of the row of bounds that may matter

        void choose_groups(const Bounds<T>& bounds, T floor) {
            T most[kBlock];
            bounds.most(box, most);
            groups = at_least(most, least_iou) | above(most, floor);
        }

        void improve(const AnchorBlock<T>& block, const T* iou) {
            const uint64_t better = at_least(iou, least_iou);
            if (better == 0) return;
            for (uint64_t left = better; left != 0; left &= left - 1) {
                const int64_t i = lowest_bit(left);
                const Claim<T> here{iou[i], block.anchor[i]};
                if (here.before(claim)) claim = here;
            }
            least_iou = claim.least_iou();
        }
    };

    // The box with a first claim: the best anchor of the block with the largest bound.
    Seeker first_claim(const Box<T>& box) const {
        Seeker seeker{box, {}, kInf<T>, 0};
        if (task_.force_match == ForceMatch::none) return seeker;
        seeker.least_iou = seeker.claim.least_iou();
        const AnchorBlock<T>& block = plan_.divided.blocks[plan_.divided.most_promising(box)];
        T iou[kBlock];
        block.iou_or_nan(box, zero_, iou);
        seeker.improve(block, iou);
        return seeker;
    }

    // Compares the group with each ground-truth box that it may matter to, while it is in the nearest cache.
    void match_group(int64_t group, Seeker* seekers, const uint32_t* visiting, int64_t num_visiting, Row& row) {
        const int64_t first = group * kBlock, num_blocks = smaller(kBlock, anchors_.num_blocks - first);
        const AnchorBlock<T>* const blocks = anchors_.blocks + first;
        const uint64_t existing = (uint64_t(2) << (num_blocks - 1)) - 1;
        const T floor = floor_;
        T* FASTSSD_RESTRICT const best = best_.data() + (keep_best_ ? first * kBlock : 0);
        Index* FASTSSD_RESTRICT const best_gt = best_gt_.data() + (keep_best_ ? first * kBlock : 0);
        for (int64_t i = 0; i < num_blocks * kBlock; ++i) best[i] = floor;
        for (int64_t i = 0; i < num_blocks * kBlock; ++i) best_gt[i] = 0;
        for (int64_t i = 0; i < num_visiting; ++i) {
            Seeker& seeker = seekers[visiting[i]];
            const Box<T> box = seeker.box;
            T most[kBlock], iou[kBlock];
            anchors_.of_blocks[group].most(box, most);
            for (uint64_t left = (at_least(most, seeker.least_iou) | above(most, floor)) & existing; left != 0;
                 left &= left - 1) {
                const int64_t b = lowest_bit(left);
                blocks[b].iou_or_nan(box, zero_, iou);
                keep_larger(iou, static_cast<Index>(visiting[i]), best + b * kBlock, best_gt + b * kBlock);
                seeker.improve(blocks[b], iou);
            }
        }
        row.put_group(blocks, first * kBlock, smaller(kGroup, task_.num_anchors - first * kBlock), best, best_gt,
                      thresholds_);
    }

    // --- bipartite --------------------------------------------------------------------------------------------------

    // For each ground-truth box that lost its best anchor, the next best anchors, best first: few at first, then more.
    struct NextBest {
        static constexpr int64_t kFew = 8, kMany = 64;

        struct Span {
            int64_t length, next, end;
        };
        Buffer<Claim<T>> claims;
        Buffer<Span> spans;

        explicit NextBest(int64_t num_gt) : claims(0), spans(num_gt) {
            for (int64_t g = 0; g < num_gt; ++g) spans[g] = {kFew, 0, 0};
        }
    };

    void force_bipartite(const T* gt_boxes, int64_t num_gt, Claim<T>* claims, Row& row) {
        NextBest next_best(num_gt);
        Buffer<int64_t> heap(num_gt);  // of ground-truth boxes that claim an anchor, the best claim first
        int64_t waiting = 0;
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNoAnchor) heap[waiting++] = g;
        }
        for (int64_t i = waiting / 2 - 1; i >= 0; --i) sift_down(heap.data(), waiting, i, claims);
        while (waiting > 0) {
            const int64_t g = heap[0];
            if (!taken_[claims[g].anchor]) {
                take(claims[g], g, row);
                heap[0] = heap[--waiting];
            } else {
                claims[g] = next_claim(next_best, g, Box<T>(gt_boxes + 4 * g));
                if (claims[g].anchor == Claim<T>::kNoAnchor) heap[0] = heap[--waiting];
            }
            sift_down(heap.data(), waiting, 0, claims);
            if (pacer_.cancelled(30)) return;
        }
        // The other boxes overlap no anchor that is free: all pairs tie at IoU 0.
        int64_t free = 0;
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNoAnchor) continue;
            while (free < task_.num_anchors && taken_[free]) ++free;
            if (free == task_.num_anchors) break;
            claims[g] = {T(0), free};
            take(claims[g], g, row);
        }
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNoAnchor) taken_[claims[g].anchor] = false;
        }
    }

    void take(const Claim<T>& claim, int64_t gt, Row& row) {
        taken_[claim.anchor] = true;
        row.put(claim.anchor, gt, claim.iou);
    }

    static void sift_down(int64_t* heap, int64_t size, int64_t parent, const Claim<T>* claims) {
        const auto first = [&](int64_t a, int64_t b) {
            return claims[a].before(claims[b]) || (!claims[b].before(claims[a]) && a < b);
        };
        for (int64_t child = 2 * parent + 1; child < size; parent = child, child = 2 * parent + 1) {
            if (child + 1 < size && first(heap[child + 1], heap[child])) ++child;
            if (!first(heap[child], heap[parent])) return;
            const int64_t gt = heap[parent];
            heap[parent] = heap[child];
            heap[child] = gt;
        }
    }

    // The best claim on an anchor that is not taken.
    Claim<T> next_claim(NextBest& next_best, int64_t gt, const Box<T>& box) {
        constexpr int64_t kMany = NextBest::kMany;
        auto& span = next_best.spans[gt];
        for (;;) {
            while (span.next < span.end) {
                const Claim<T> claim = next_best.claims[gt * kMany + span.next++];
                if (!taken_[claim.anchor]) return claim;
            }
            next_best.claims.reserve((gt + 1) * kMany, gt * kMany);
            span.next = 0;
            span.end = list_best(box, next_best.claims.data() + gt * kMany, span.length);
            span.length = kMany;
            if (span.end == 0) return Claim<T>();
        }
    }

    int64_t list_best(const Box<T>& box, Claim<T>* list, int64_t length) {
        int64_t size = 0;
        T least_iou = Claim<T>().least_iou(), iou[kBlock];
        int64_t work = 20 * plan_.divided.num_groups;
        plan_.divided.search(box, least_iou, [&](int64_t b) {
            plan_.divided.blocks[b].iou(box, iou);
            work += kBlock;
            for (uint64_t left = at_least(iou, least_iou); left != 0; left &= left - 1) {
                const int64_t i = lowest_bit(left);
                const Claim<T> here{iou[i], plan_.divided.blocks[b].anchor[i]};
                if (taken_[here.anchor] || (size == length && !here.before(list[size - 1]))) continue;
                int64_t to = size == length ? size - 1 : size++;
                for (; to > 0 && here.before(list[to - 1]); --to) list[to] = list[to - 1];
                list[to] = here;
            }
            if (size == length) least_iou = list[size - 1].iou;
        });
        pacer_.cancelled(work);
        return size;
    }

    // --- low quality ------------------------------------------------------------------------------------------------

    // Every anchor with the largest IoU of some ground-truth box becomes positive, for its own best ground-truth box.
    void force_low_quality(const T* gt_boxes, int64_t num_gt, const Claim<T>* claims, Row& row) {
        for (int64_t g = 0; g < num_gt; ++g) {
            const Box<T> box(gt_boxes + 4 * g);
            const T wanted = claims[g].iou;
            int64_t work = 20 * anchors_.num_groups;
            anchors_.search(box, wanted, [&](int64_t b) {
                T iou[kBlock];
                anchors_.blocks[b].iou(box, iou);
                const int64_t size = anchors_.size_of(b);
                for (int64_t i = 0; i < size; ++i) {
                    const int64_t place = b * kBlock + i;
                    if (iou[i] == wanted) row.put(anchors_.blocks[b].anchor[i], best_gt_[place], best_[place]);
                }
                work += kBlock;
            });
            if (pacer_.cancelled(work)) return;
        }
    }

    const MatchAnchorsTask<T>& task_;
    const MatchPlan<T> plan_;
    const AnchorIndex<T>& anchors_;  // in the order in which they are visited
    const Thresholds<T> thresholds_;
    const bool keep_best_;    // of all anchors, not only of the present group
    const T floor_;           // an anchor whose IoUs are all at or below this is background
    const bool every_group_;  // whether a group has outputs even where it matters to no ground-truth box
    const T zero_ = T(0);
    Buffer<T> best_;         // the largest IoU, by place among the anchors
    Buffer<Index> best_gt_;  // the ground-truth box of that IoU
    Buffer<bool> taken_;     // by anchor; all false between images
    Pacer pacer_;
};

template <typename T>
void match_anchors(const MatchAnchorsTask<T>& task, int64_t begin, int64_t end) {
    Matcher<T, MatchRow<T>> matcher(task);
    for (int64_t image = begin; image < end && !poll(); ++image) matcher.match(image, MatchRow<T>(task, image));
}

template <typename T>
void assign_targets(const AssignTargetsTask<T>& task, int64_t begin, int64_t end) {
    Matcher<T, TargetRow<T>> matcher(task.match);
    for (int64_t image = begin; image < end && !poll(); ++image) matcher.match(image, TargetRow<T>(task, image));
}

}  // namespace fastssd::FASTSSD_ISA
