// Which anchor is responsible for which ground truth. The anchors lie in an index (support/anchor_index.h), sorted into
// blocks of 16 with bounds. Each ground truth first meets the block where it can expect most, which gives it a good
// claim, then every block whose bound says that it may better an anchor there or the claim. Where the IoU is not an
// output an anchor counts as bettered only from the lowest threshold on, and few blocks are met. What is met is written
// over a row of background. Then the forcing. Bipartite forcing serves claims in order from a heap; a ground truth
// whose anchor is taken goes on along a short list of its next best anchors, searched for when it runs out.
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

template <typename T>
int64_t anchor_plan_size(int64_t num_anchors) {
    return AnchorIndex<T>::bytes(num_anchors);
}

template <typename T>
void plan_anchors(const T* anchors, int64_t num_anchors, void* plan) {
    AnchorIndex<T>(plan, num_anchors).build(anchors);
}

// What match_anchors writes of an image.
template <typename T>
class MatchRow {
  public:
    static constexpr bool kEveryIou = true;

    MatchRow(const MatchTask<T>& task, int64_t image)
        : num_anchors_(task.num_anchors),
          gt_idx_(task.gt_idx + image * num_anchors_),
          iou_(task.iou + image * num_anchors_) {}

    // Every anchor, as one that meets no ground truth.
    void fill(int64_t gt_idx) {
        for (int64_t a = 0; a < num_anchors_; ++a) gt_idx_[a] = gt_idx;
        std::memset(iou_, 0, static_cast<std::size_t>(num_anchors_) * sizeof(T));
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

    void fill(int64_t gt_idx) {
        const int64_t label = gt_idx == kIgnored ? -1 : 0;
        for (int64_t a = 0; a < num_anchors_; ++a) gt_idx_[a] = gt_idx;
        for (int64_t a = 0; a < num_anchors_; ++a) labels_[a] = label;
        std::memset(deltas_, 0, 4 * static_cast<std::size_t>(num_anchors_) * sizeof(T));
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
          index_(const_cast<void*>(task.plan), task.num_anchors),
          positive_(round_up(T(), task.iou_threshold)),
          background_(round_up(T(), task.background_threshold)),
          floor_(Row::kEveryIou || task.force_match == ForceMatch::low_quality ? T(0) : under(background_)),
          best_(index_.num_blocks * kBlock),
          best_gt_(index_.num_blocks * kBlock),
          least_(index_.num_groups * kBlock),
          met_(index_.num_blocks + 1),
          is_met_(index_.num_blocks + 1),
          taken_(task.num_anchors) {
        for (int64_t b = 0; b < index_.num_blocks; ++b) forget(b);
        for (int64_t b = index_.num_blocks; b < index_.num_groups * kBlock; ++b) least_[b] = floor_;
        std::memset(taken_.data(), 0, static_cast<std::size_t>(task.num_anchors));
    }

    void match(int64_t image, Row row) {
        const T* const gt_boxes = task_.gt_boxes + 4 * task_.offsets[image];
        const int64_t num_gt = task_.offsets[image + 1] - task_.offsets[image];
        const int64_t without_overlap = num_gt == 0 ? kBackground : verdict(T(0), 0);
        row.fill(without_overlap);
        if (num_gt == 0 || task_.num_anchors == 0) return;

        Buffer<Claim<T>> claims(num_gt);
        for (int64_t g = 0; g < num_gt; ++g) {
            claims[g] = meet_anchors(Box<T>(gt_boxes + 4 * g), static_cast<Index>(g));
            if (pacer_.cancelled(work_)) return;
        }
        if (without_overlap >= 0) {
            for (int64_t b = 0; b < index_.num_blocks; ++b) note(b);
        }
        for (int64_t i = 0; i < num_met_; ++i) write(met_[i], without_overlap, row);
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
        for (int64_t i = 0; i < num_met_; ++i) forget(met_[i]);
        num_met_ = 0;
    }

  private:
    using Index = typename Bits<T>::Signed;  // as wide as T, so that index and IoU share a vectorised loop

    static float next_down(float x) { return nextafterf(x, -kInf<float>); }
    static double next_down(double x) { return nextafter(x, -kInf<double>); }
    static T under(T threshold) { return threshold > T(0) ? next_down(threshold) : T(0); }

    // The anchor's gt_idx by the thresholds alone.
    int64_t verdict(T iou, Index best_gt) const {
        const int64_t rest = iou < background_ ? kBackground : kIgnored;
        return iou >= positive_ ? static_cast<int64_t>(best_gt) : rest;
    }

    void forget(int64_t b) {
        for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
            best_[i] = floor_;
            best_gt_[i] = 0;
        }
        least_[b] = floor_;
        is_met_[b] = false;
    }

    void note(int64_t b) {
        met_[num_met_] = b;
        num_met_ += !is_met_[b];
        is_met_[b] = true;
    }

    // Asks for the blocks that may reach the bar, which rises.
    struct Bar {
        const T& bar;

        uint64_t groups(const T* most) const { return at_least(most, bar); }
        uint64_t blocks(const T* most, int64_t) const { return at_least(most, bar); }
    };

    // Also for those that may better one of their anchors.
    struct Demand {
        const T &bar, floor;
        const T* least;

        uint64_t groups(const T* most) const { return at_least(most, bar) | above(most, floor); }
        uint64_t blocks(const T* most, int64_t first) const { return at_least(most, bar) | above(most, least + first); }
    };

    Claim<T> meet_anchors(const Box<T>& box, Index gt) {
        Claim<T> claim;
        work_ = 20 * index_.num_groups;
        int64_t first = -1;
        T bar = kInf<T>;
        if (task_.force_match != ForceMatch::none) {
            bar = claim.bar();
            first = index_.likeliest(box);
            meet_block(first, box, gt, claim, bar);
        }
        index_.search(box, Demand{bar, floor_, least_.data()}, [&](int64_t b) {
            if (b != first) meet_block(b, box, gt, claim, bar);
        });
        return claim;
    }

    void meet_block(int64_t b, const Box<T>& box, Index gt, Claim<T>& claim, T& bar) {
        T iou[kBlock];
        index_.blocks[b].iou(box, iou);
        T* const best = best_.data() + b * kBlock;
        keep_larger(iou, gt, best, best_gt_.data() + b * kBlock);
        least_[b] = least_of(best);
        note(b);
        work_ += kBlock;
        const uint64_t claims = at_least(iou, bar);
        if (claims == 0) return;
        for (uint64_t left = claims; left != 0; left &= left - 1) {
            const int64_t i = lowest_bit(left);
            const Claim<T> here{iou[i], index_.blocks[b].anchor[i]};
            if (here.before(claim) || claim.anchor == Claim<T>::kNobody) claim = here;
        }
        bar = claim.bar();
    }

    void write(int64_t b, int64_t without_overlap, Row& row) const {
        const uint32_t* const anchor = index_.blocks[b].anchor;
        const int64_t size = index_.size_of(b);
        for (int64_t i = 0; i < size; ++i) {
            const T iou = best_[b * kBlock + i];
            const int64_t gt_idx = verdict(iou, best_gt_[b * kBlock + i]);
            if (Row::kEveryIou || without_overlap >= 0 || gt_idx != without_overlap) row.put(anchor[i], gt_idx, iou);
        }
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
        int64_t work = 20 * index_.num_groups;
        index_.search(box, Bar{bar}, [&](int64_t b) {
            index_.blocks[b].iou(box, iou);
            work += kBlock;
            for (uint64_t left = at_least(iou, bar); left != 0; left &= left - 1) {
                const int64_t i = lowest_bit(left);
                const Claim<T> here{iou[i], index_.blocks[b].anchor[i]};
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
            int64_t work = 20 * index_.num_groups;
            index_.search(box, Bar{wanted}, [&](int64_t b) {
                T iou[kBlock];
                index_.blocks[b].iou(box, iou);
                const int64_t size = index_.size_of(b);
                for (int64_t i = 0; i < size; ++i) {
                    const int64_t place = b * kBlock + i;
                    if (iou[i] == wanted) {
                        row.put(index_.blocks[b].anchor[i], static_cast<int64_t>(best_gt_[place]), best_[place]);
                    }
                }
                work += kBlock;
            });
            if (pacer_.cancelled(work)) return;
        }
    }

    const MatchTask<T>& task_;
    const AnchorIndex<T> index_;
    const T positive_, background_;
    const T floor_;   // an anchor that stays at or under this needs no ground truth
    Buffer<T> best_;  // by place in the index, as the next one
    Buffer<Index> best_gt_;
    Buffer<T> least_;      // the smallest of best_ in each block
    Buffer<int64_t> met_;  // blocks that some ground truth met
    Buffer<bool> is_met_;
    Buffer<bool> taken_;  // by anchor; all false between images
    int64_t num_met_ = 0;
    int64_t work_ = 0;
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
