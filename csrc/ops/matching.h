// Which anchor is responsible for which ground truth. The anchors lie in blocks of 16, groups of 16 blocks, with bounds
// of the IoU (support/anchor_index.h). Each ground truth first claims the best anchor of the block where it can expect
// most. Then group by group, which stays in the first-level cache, it meets the blocks whose bound says that it may
// better an anchor there or its claim. Where every IoU is an output these are all that it overlaps, and the anchors are
// met in the order of the caller, so that outputs are written once and in order; where only the lowest threshold counts
// they are few, and met in an order in which neighbours alike stand together. Then the forcing: bipartite forcing
// serves claims in order from a heap; a ground truth whose anchor is taken goes on along a short list of its next best
// anchors, searched for when it runs out.
//
// Source: SSD paper, section 2.2, "Matching strategy".
#pragma once

#include "dispatch.h"
#include "ops/boxes.h"
#include "ops/coding.h"
#include "ops/iou.h"
#include "support/anchor_index.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kBackground = -1, kIgnored = -2;

// The anchors, twice.
template <typename T>
struct MatchPlan {
    AnchorIndex<T> divided;   // neighbours alike stand together
    AnchorIndex<T> in_order;  // as they came

    MatchPlan(void* memory, int64_t num_anchors)
        : divided(memory, num_anchors),
          in_order(static_cast<char*>(memory) + AnchorIndex<T>::bytes(num_anchors), num_anchors) {}
};

template <typename T>
int64_t anchor_plan_size(int64_t num_anchors) {
    return 2 * AnchorIndex<T>::bytes(num_anchors);
}

template <typename T>
void plan_anchors(const T* anchors, int64_t num_anchors, void* memory) {
    MatchPlan<T> plan(memory, num_anchors);
    plan.divided.build(anchors, true);
    plan.in_order.build(anchors, false);
}

// What an IoU with the best ground truth makes of an anchor.
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

// What match_anchors writes of an image.
template <typename T>
class MatchRow {
  public:
    static constexpr bool kEveryIou = true;

    MatchRow(const MatchTask<T>& task, int64_t image)
        : num_anchors_(task.num_anchors),
          gt_idx_(task.gt_idx + image * num_anchors_),
          iou_(task.iou + image * num_anchors_) {}

    static const AnchorIndex<T>& order(const MatchPlan<T>& plan) { return plan.in_order; }

    // Every anchor, as one that meets no ground truth; what a group puts comes over it.
    void clear() {}
    void clear_for_good() {
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

// What assign_targets writes of an image.
template <typename T>
class TargetRow {
  public:
    static constexpr bool kEveryIou = false;

    TargetRow(const AssignTask<T>& task, int64_t image)
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
    void clear_for_good() { clear(); }

    template <typename Index>
    void put_group(const AnchorBlock<T>* blocks, int64_t, int64_t size, const T* best, const Index* best_gt,
                   Thresholds<T> thresholds) {
        for (int64_t begin = 0; begin < size; begin += kBlock, ++blocks) {
            if (at_least(best + begin, thresholds.background) == 0) continue;  // most blocks, by far
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

// What a ground truth would like most: its best anchor and the IoU with it, or no anchor where it overlaps none.
template <typename T>
struct Claim {
    static constexpr int64_t kNobody = -1;

    T iou = T(0);
    int64_t anchor = kNobody;

    bool before(const Claim& other) const { return iou > other.iou || (iou == other.iou && anchor < other.anchor); }

    // The smallest IoU that can better this claim.
    T bar() const { return larger(iou, std::numeric_limits<T>::denorm_min()); }
};

template <typename T, typename Row>
class Matcher {
  public:
    explicit Matcher(const MatchTask<T>& task)
        : task_(task),
          plan_(const_cast<void*>(task.plan), task.num_anchors),
          anchors_(Row::order(plan_)),
          thresholds_{round_up(T(), task.iou_threshold), round_up(T(), task.background_threshold)},
          keep_best_(task.force_match == ForceMatch::low_quality),
          floor_(Row::kEveryIou || keep_best_ ? T(0) : under(thresholds_.background)),
          every_group_(Row::kEveryIou || keep_best_ || thresholds_.verdict(floor_, 0) != kBackground),
          best_(keep_best_ ? anchors_.num_groups * kGroup : kGroup),
          best_gt_(keep_best_ ? anchors_.num_groups * kGroup : kGroup),
          taken_(task.num_anchors) {
        std::memset(taken_.data(), 0, static_cast<std::size_t>(task.num_anchors));
    }

    void match(int64_t image, Row row) {
        const T* const gt_boxes = task_.gt_boxes + 4 * task_.offsets[image];
        const int64_t num_gt = task_.offsets[image + 1] - task_.offsets[image];
        if (num_gt == 0 || task_.num_anchors == 0) return row.clear_for_good();

        row.clear();
        Buffer<Suitor> suitors(num_gt);
        Buffer<uint32_t> callers(num_gt);
        for (int64_t g = 0; g < num_gt; ++g) {
            suitors[g] = introduce(Box<T>(gt_boxes + 4 * g));
            if (pacer_.cancelled(20 * anchors_.num_rows)) return;
        }
        for (int64_t group = 0; group < anchors_.num_groups; ++group) {
            if (group % kBlock == 0) {
                const Bounds<T>& bounds = anchors_.of_groups[group / kBlock];
                for (int64_t g = 0; g < num_gt; ++g) suitors[g].choose_groups(bounds, floor_);
            }
            int64_t num_callers = 0;
            for (int64_t g = 0; g < num_gt; ++g) {
                callers[num_callers] = static_cast<uint32_t>(g);
                num_callers += static_cast<int64_t>(suitors[g].groups >> group % kBlock & 1);
            }
            if (num_callers > 0 || every_group_) meet_group(group, suitors.data(), callers.data(), num_callers, row);
            if (pacer_.cancelled(2 * num_gt + 60 * num_callers + 60)) return;
        }

        Buffer<Claim<T>> claims(num_gt);
        for (int64_t g = 0; g < num_gt; ++g) claims[g] = suitors[g].claim;
        switch (task_.force_match) {
            case ForceMatch::none:
                break;
            case ForceMatch::bipartite:
                force_bipartite(gt_boxes, num_gt, claims.data(), row);
                break;
            case ForceMatch::best:
                for (int64_t g = 0; g < num_gt; ++g) {
                    row.put(claims[g].anchor == Claim<T>::kNobody ? 0 : claims[g].anchor, g, claims[g].iou);
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
    static T under(T threshold) { return threshold > T(0) ? next_down(threshold) : T(0); }

    // Asks for the blocks that may reach the bar, which rises.
    struct Bar {
        const T& bar;

        uint64_t groups(const T* most) const { return at_least(most, bar); }
        uint64_t blocks(const T* most, int64_t) const { return at_least(most, bar); }
    };

    // A ground truth on its way through the anchors.
    struct Suitor {
        Box<T> box;
        Claim<T> claim;   // the best so far
        T bar;            // the smallest IoU that may better it; infinity where nobody asks
        uint64_t groups;  // in the present row of groups, those to meet

        void choose_groups(const Bounds<T>& bounds, T floor) {
            T most[kBlock];
            bounds.most(box, most);
            groups = at_least(most, bar) | above(most, floor);
        }

        void improve(const AnchorBlock<T>& block, const T* iou) {
            const uint64_t better = at_least(iou, bar);
            if (better == 0) return;
            for (uint64_t left = better; left != 0; left &= left - 1) {
                const int64_t i = lowest_bit(left);
                const Claim<T> here{iou[i], block.anchor[i]};
                if (here.before(claim)) claim = here;
            }
            bar = claim.bar();
        }
    };

    // With a first claim, on the best anchor of the block that promises most.
    Suitor introduce(const Box<T>& box) const {
        Suitor suitor{box, {}, kInf<T>, 0};
        if (task_.force_match == ForceMatch::none) return suitor;
        suitor.bar = suitor.claim.bar();
        const AnchorBlock<T>& block = plan_.divided.blocks[plan_.divided.likeliest(box)];
        T iou[kBlock];
        block.iou_or_nan(box, zero_, iou);
        suitor.improve(block, iou);
        return suitor;
    }

    // All ground truths that may matter in a group, one after the other, while the group is in the nearest cache.
    void meet_group(int64_t group, Suitor* suitors, const uint32_t* callers, int64_t num_callers, Row& row) {
        const int64_t first = group * kBlock, num_blocks = smaller(kBlock, anchors_.num_blocks - first);
        const AnchorBlock<T>* const blocks = anchors_.blocks + first;
        const uint64_t existing = (uint64_t(2) << (num_blocks - 1)) - 1;
        const T floor = floor_;
        T* FASTSSD_RESTRICT const best = best_.data() + (keep_best_ ? first * kBlock : 0);
        Index* FASTSSD_RESTRICT const best_gt = best_gt_.data() + (keep_best_ ? first * kBlock : 0);
        for (int64_t i = 0; i < num_blocks * kBlock; ++i) best[i] = floor;
        for (int64_t i = 0; i < num_blocks * kBlock; ++i) best_gt[i] = 0;
        for (int64_t caller = 0; caller < num_callers; ++caller) {
            Suitor& suitor = suitors[callers[caller]];
            const Box<T> box = suitor.box;
            T most[kBlock], iou[kBlock];
            anchors_.of_blocks[group].most(box, most);
            for (uint64_t left = (at_least(most, suitor.bar) | above(most, floor)) & existing; left != 0;
                 left &= left - 1) {
                const int64_t b = lowest_bit(left);
                blocks[b].iou_or_nan(box, zero_, iou);
                keep_larger(iou, static_cast<Index>(callers[caller]), best + b * kBlock, best_gt + b * kBlock);
                suitor.improve(blocks[b], iou);
            }
        }
        row.put_group(blocks, first * kBlock, smaller(kGroup, task_.num_anchors - first * kBlock), best, best_gt,
                      thresholds_);
    }

    // --- bipartite --------------------------------------------------------------------------------------------------

    // For each ground truth that lost its best anchor, a few next best ones, best first: few at first, then more.
    struct Runners {
        static constexpr int64_t kFew = 8, kMany = 64;

        struct Span {
            int64_t length, next, end;
        };
        Buffer<Claim<T>> claims;
        Buffer<Span> spans;

        explicit Runners(int64_t num_gt) : claims(0), spans(num_gt) {
            for (int64_t g = 0; g < num_gt; ++g) spans[g] = {kFew, 0, 0};
        }
    };

    void force_bipartite(const T* gt_boxes, int64_t num_gt, Claim<T>* claims, Row& row) {
        Runners runners(num_gt);
        Buffer<int64_t> heap(num_gt);  // of ground truths that claim an anchor, the best claim first
        int64_t waiting = 0;
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNobody) heap[waiting++] = g;
        }
        for (int64_t i = waiting / 2 - 1; i >= 0; --i) sift_down(heap.data(), waiting, i, claims);
        while (waiting > 0) {
            const int64_t g = heap[0];
            if (!taken_[claims[g].anchor]) {
                take(claims[g], g, row);
                heap[0] = heap[--waiting];
            } else {
                claims[g] = next_claim(runners, g, Box<T>(gt_boxes + 4 * g));
                if (claims[g].anchor == Claim<T>::kNobody) heap[0] = heap[--waiting];
            }
            sift_down(heap.data(), waiting, 0, claims);
            if (pacer_.cancelled(30)) return;
        }
        // The rest overlaps no anchor that is free: all pairs tie at IoU 0.
        int64_t free = 0;
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNobody) continue;
            while (free < task_.num_anchors && taken_[free]) ++free;
            if (free == task_.num_anchors) break;
            claims[g] = {T(0), free};
            take(claims[g], g, row);
        }
        for (int64_t g = 0; g < num_gt; ++g) {
            if (claims[g].anchor != Claim<T>::kNobody) taken_[claims[g].anchor] = false;
        }
    }

    void take(const Claim<T>& claim, int64_t gt, Row& row) {
        taken_[claim.anchor] = true;
        row.put(claim.anchor, gt, claim.iou);
    }

    static void sift_down(int64_t* heap, int64_t size, int64_t at, const Claim<T>* claims) {
        const auto first = [&](int64_t a, int64_t b) {
            return claims[a].before(claims[b]) || (!claims[b].before(claims[a]) && a < b);
        };
        for (int64_t child = 2 * at + 1; child < size; at = child, child = 2 * at + 1) {
            if (child + 1 < size && first(heap[child + 1], heap[child])) ++child;
            if (!first(heap[child], heap[at])) return;
            const int64_t gt = heap[at];
            heap[at] = heap[child];
            heap[child] = gt;
        }
    }

    // The best claim on an anchor that is not taken.
    Claim<T> next_claim(Runners& runners, int64_t gt, const Box<T>& box) {
        constexpr int64_t kMany = Runners::kMany;
        auto& span = runners.spans[gt];
        for (;;) {
            while (span.next < span.end) {
                const Claim<T> claim = runners.claims[gt * kMany + span.next++];
                if (!taken_[claim.anchor]) return claim;
            }
            runners.claims.reserve((gt + 1) * kMany, gt * kMany);
            span.next = 0;
            span.end = list_best(box, runners.claims.data() + gt * kMany, span.length);
            span.length = kMany;
            if (span.end == 0) return Claim<T>();
        }
    }

    int64_t list_best(const Box<T>& box, Claim<T>* list, int64_t length) {
        int64_t size = 0;
        T bar = Claim<T>().bar(), iou[kBlock];
        int64_t work = 20 * plan_.divided.num_groups;
        plan_.divided.search(box, Bar{bar}, [&](int64_t b) {
            plan_.divided.blocks[b].iou(box, iou);
            work += kBlock;
            for (uint64_t left = at_least(iou, bar); left != 0; left &= left - 1) {
                const int64_t i = lowest_bit(left);
                const Claim<T> here{iou[i], plan_.divided.blocks[b].anchor[i]};
                if (taken_[here.anchor] || (size == length && !here.before(list[size - 1]))) continue;
                int64_t to = size == length ? size - 1 : size++;
                for (; to > 0 && here.before(list[to - 1]); --to) list[to] = list[to - 1];
                list[to] = here;
            }
            if (size == length) bar = list[size - 1].iou;
        });
        pacer_.cancelled(work);
        return size;
    }

    // --- low quality ------------------------------------------------------------------------------------------------

    // Every anchor that is as good for a ground truth as any is positive, for its own best ground truth.
    void force_low_quality(const T* gt_boxes, int64_t num_gt, const Claim<T>* claims, Row& row) {
        for (int64_t g = 0; g < num_gt; ++g) {
            const Box<T> box(gt_boxes + 4 * g);
            const T wanted = claims[g].iou;
            int64_t work = 20 * anchors_.num_groups;
            anchors_.search(box, Bar{wanted}, [&](int64_t b) {
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

    const MatchTask<T>& task_;
    const MatchPlan<T> plan_;
    const AnchorIndex<T>& anchors_;  // in the order in which they are met
    const Thresholds<T> thresholds_;
    const bool keep_best_;    // of all anchors, not of a group only
    const T floor_;           // an anchor that stays at or under this needs no ground truth
    const bool every_group_;  // puts something, even where no ground truth calls
    const T zero_ = T(0);
    Buffer<T> best_;  // by place among the anchors, as the next one
    Buffer<Index> best_gt_;
    Buffer<bool> taken_;  // by anchor; all false between images
    Pacer pacer_;
};

template <typename T>
void match_anchors(const MatchTask<T>& task, int64_t begin, int64_t end) {
    Matcher<T, MatchRow<T>> matcher(task);
    for (int64_t image = begin; image < end && !poll(); ++image) matcher.match(image, MatchRow<T>(task, image));
}

template <typename T>
void assign_targets(const AssignTask<T>& task, int64_t begin, int64_t end) {
    Matcher<T, TargetRow<T>> matcher(task.match);
    for (int64_t image = begin; image < end && !poll(); ++image) matcher.match(image, TargetRow<T>(task, image));
}

}  // namespace fastssd::FASTSSD_ISA
