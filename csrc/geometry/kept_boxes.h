// The boxes that an NMS has kept, by class. A box is compared with all kept boxes of its class: for few boxes, and for
// boxes too small for the bounds of a grid (OverlapTest::tiny).
#pragma once

#include <cstdint>

#include "geometry/box.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/select.h"

namespace fastssd::FASTSSD_ISA {

// In blocks of kLanes boxes, the newest block first.
template <typename T>
class KeptBoxes {
  public:
    KeptBoxes(int64_t num_classes, double iou_threshold)
        : limit_(round_down(T(), iou_threshold)),
          share_(static_cast<T>(iou_threshold / (1 + iou_threshold) * (1 - 1e-5))),
          classes_(num_classes),
          blocks_(kFirstBlocks) {}

    void clear(int64_t num_classes) {
        num_blocks_ = 0;
        for (int64_t c = 0; c < num_classes; ++c) classes_[c] = {kNone, 0};
    }

    bool suppress(const Box<T>& box, int64_t c) const {
        for (int64_t b = classes_[c].newest; b != kNone; b = blocks_[b].next) {
            if (near(box, blocks_[b]) && overlaps(box, blocks_[b])) return true;
        }
        return false;
    }

    void add(const Box<T>& box, int64_t c) {
        Class& of = classes_[c];
        const int64_t lane = of.count++ % kLanes;
        if (lane == 0) {
            blocks_.reserve(num_blocks_ + 1, num_blocks_);
            Block& block = blocks_[num_blocks_];
            block = {};  // lanes without a box overlap nothing
            block.next = of.newest;
            of.newest = num_blocks_++;
        }
        Block& block = blocks_[of.newest];
        block.x1[lane] = box.x1;
        block.y1[lane] = box.y1;
        block.x2[lane] = box.x2;
        block.y2[lane] = box.y2;
        block.area[lane] = box.area;
    }

    int64_t blocks_of(int64_t c) const { return (classes_[c].count + kLanes - 1) / kLanes; }

  private:
    static constexpr int64_t kLanes = 8, kNone = -1, kFirstBlocks = 64;

    struct Block {
        T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
        int64_t next;
    };
    struct Class {
        int64_t newest, count;
    };

    static T lane_intersection(const Box<T>& box, const Block& block, int64_t i) {
        return positive_part(smaller(box.x2, block.x2[i]) - larger(box.x1, block.x1[i])) *
               positive_part(smaller(box.y2, block.y2[i]) - larger(box.y1, block.y1[i]));
    }

    // Whether any lane may overlap too much: inter / (sum - inter) > t means inter > t / (1 + t) * sum, and rounding is
    // far smaller than the 1e-5 that share_ leaves for it. (Where the product underflows, it is still at most inter.)
    bool near(const Box<T>& box, const Block& block) const {
        SignedKeyOf<T> any = 0;
        for (int64_t i = 0; i < kLanes; ++i) {
            any |= static_cast<SignedKeyOf<T>>(lane_intersection(box, block, i) >= share_ * (box.area + block.area[i]));
        }
        return any != 0;
    }

    // The union needs no check: it is never negative, and where it is 0 or NaN the quotient is NaN.
    bool overlaps(const Box<T>& box, const Block& block) const {
        SignedKeyOf<T> any = 0;
        for (int64_t i = 0; i < kLanes; ++i) {
            const T inter = lane_intersection(box, block, i);
            any |= static_cast<SignedKeyOf<T>>(inter / (box.area + block.area[i] - inter) > limit_);
        }
        return any != 0;
    }

    const T limit_, share_;
    Buffer<Class> classes_;
    Buffer<Block> blocks_;
    int64_t num_blocks_ = 0;
};

}  // namespace fastssd::FASTSSD_ISA
