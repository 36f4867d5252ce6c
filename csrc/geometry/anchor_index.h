// Anchors, which are the same in every call, arranged so that a box is compared only with those that can matter to it.
// They are divided into halves again and again, as in a k-d tree over place and size, down to blocks of 16; 16 blocks
// are a group. Blocks and groups have bounds, which give an IoU that no anchor inside exceeds. The bound is computed
// with the same operations as iou_of, and each of them is monotone after rounding too. So the bound holds to the last
// bit and needs no margin.
#pragma once

#include "geometry/box.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/simd.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kBlock = kMaskWidth;  // anchors in a block, blocks in a group, groups in a row of bounds

inline int64_t blocks_for(int64_t n) { return (n + kBlock - 1) / kBlock; }

// For each of 16 sets of boxes: the hull, the largest width and height, the smallest area.
template <typename T>
struct Bounds {
    T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], width[kBlock], height[kBlock], area[kBlock];

    void clear() {
        for (int64_t i = 0; i < kBlock; ++i) {
            x1[i] = y1[i] = area[i] = kInf<T>;
            x2[i] = y2[i] = -kInf<T>;
            width[i] = height[i] = T(0);
        }
    }

    void widen(int64_t i, T left, T top, T right, T bottom, T wide, T high, T least_area) {
        x1[i] = smaller(left, x1[i]), y1[i] = smaller(top, y1[i]);
        x2[i] = larger(right, x2[i]), y2[i] = larger(bottom, y2[i]);
        width[i] = larger(wide, width[i]), height[i] = larger(high, height[i]);
        area[i] = smaller(least_area, area[i]);
    }

    // For each set, an IoU with `box` that no box in it exceeds; infinity where there is no bound.
    void most(const Box<T>& box, T* FASTSSD_RESTRICT out) const {
        for (int64_t i = 0; i < kBlock; ++i) {
            const T wide = positive_part(smaller(smaller(box.x2, x2[i]) - larger(box.x1, x1[i]), width[i]));
            const T high = positive_part(smaller(smaller(box.y2, y2[i]) - larger(box.y1, y1[i]), height[i]));
            const T inter = wide * high;
            const T sum = box.area + area[i] - inter;
            out[i] = sum > T(0) ? inter / sum : kInf<T>;
        }
    }
};

// The anchors of a block by coordinate. Places without an anchor hold a point, whose IoU is 0.
template <typename T>
struct AnchorBlock {
    T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
    uint32_t anchor[kBlock];  // their indices in the caller's order

    void iou(const Box<T>& box, T* FASTSSD_RESTRICT out) const {
        for (int64_t i = 0; i < kBlock; ++i) {
            const T wide = positive_part(smaller(box.x2, x2[i]) - larger(box.x1, x1[i]));
            const T high = positive_part(smaller(box.y2, y2[i]) - larger(box.y1, y1[i]));
            const T inter = wide * high;
            const T sum = box.area + area[i] - inter;
            out[i] = sum > T(0) ? inter / sum : T(0);
        }
    }

    // The same, but NaN where the union is not a positive number: enough where IoUs are only compared with numbers that
    // are not negative. `zero` is 0, hidden from GCC, which makes a comparison and a mask of max(x, 0) where it knows
    // it.
    void iou_or_nan(const Box<T>& box, T zero, T* FASTSSD_RESTRICT out) const {
        for (int64_t i = 0; i < kBlock; ++i) {
            const T wide = larger(smaller(box.x2, x2[i]) - larger(box.x1, x1[i]), zero);
            const T high = larger(smaller(box.y2, y2[i]) - larger(box.y1, y1[i]), zero);
            const T inter = wide * high;
            out[i] = inter / (box.area + area[i] - inter);
        }
    }
};

// A view of the caller's memory, of bytes(num_anchors), aligned as T is.
template <typename T>
class AnchorIndex {
  public:
    int64_t num_anchors, num_blocks, num_groups, num_rows;
    AnchorBlock<T>* blocks;  // [num_blocks]
    Bounds<T>* of_blocks;    // [num_groups], each the bounds of 16 blocks
    Bounds<T>* of_groups;    // [num_rows], each the bounds of 16 groups

    AnchorIndex(void* memory, int64_t anchors)
        : num_anchors(anchors),
          num_blocks(blocks_for(anchors)),
          num_groups(blocks_for(num_blocks)),
          num_rows(blocks_for(num_groups)),
          blocks(static_cast<AnchorBlock<T>*>(memory)),
          of_blocks(reinterpret_cast<Bounds<T>*>(blocks + num_blocks)),
          of_groups(of_blocks + num_groups) {}

    static int64_t bytes(int64_t num_anchors) {
        const AnchorIndex empty(nullptr, num_anchors);
        return empty.num_blocks * static_cast<int64_t>(sizeof(AnchorBlock<T>)) +
               (empty.num_groups + empty.num_rows) * static_cast<int64_t>(sizeof(Bounds<T>));
    }

    int64_t size_of(int64_t block) const { return smaller(kBlock, num_anchors - block * kBlock); }

    // In the caller's order, or divided, so that anchors of similar place and size are together.
    void build(const T* anchors, bool divided) {
        Buffer<Member> members(num_anchors);
        Pacer pacer;
        for (int64_t a = 0; a < num_anchors; ++a) {
            members[a] = member_of(anchors, a);
            if (pacer.cancelled(20)) return;
        }
        if (divided && !divide(members.data(), num_anchors, pacer)) return;
        for (int64_t i = 0; i < num_groups; ++i) of_blocks[i].clear();
        for (int64_t i = 0; i < num_rows; ++i) of_groups[i].clear();
        for (int64_t b = 0; b < num_blocks; ++b) {
            fill(b, anchors, members.data() + b * kBlock, size_of(b));
            const Bounds<T>& from = of_blocks[b / kBlock];
            const int64_t i = b % kBlock, group = b / kBlock;
            of_groups[group / kBlock].widen(group % kBlock, from.x1[i], from.y1[i], from.x2[i], from.y2[i],
                                            from.width[i], from.height[i], from.area[i]);
            if (pacer.cancelled(20 * kBlock)) return;
        }
    }

    // Calls visit(block) for every block whose bound is at least `least_iou`, which visit may raise.
    template <typename Visit>
    void search(const Box<T>& box, const T& least_iou, const Visit& visit) const {
        T of_group[kBlock], of_block[kBlock];
        for (int64_t row = 0; row < num_rows; ++row) {
            of_groups[row].most(box, of_group);
            for (uint64_t groups = at_least(of_group, least_iou); groups != 0; groups &= groups - 1) {
                const int64_t group = row * kBlock + lowest_bit(groups), first = group * kBlock;
                if (group >= num_groups) return;
                of_blocks[group].most(box, of_block);
                for (uint64_t left = at_least(of_block, least_iou); left != 0; left &= left - 1) {
                    const int64_t block = first + lowest_bit(left);
                    if (block >= num_blocks) return;
                    visit(block);
                }
            }
        }
    }

    // In the group with the largest bound, the block with the largest bound.
    int64_t most_promising(const Box<T>& box) const {
        T most[kBlock], best = T(-1);
        int64_t group = 0;
        for (int64_t row = 0; row < num_rows; ++row) {
            of_groups[row].most(box, most);
            const T here = most_of(most);
            if (here > best) best = here, group = row * kBlock + place_of(most, here);
        }
        of_blocks[group].most(box, most);
        return group * kBlock + place_of(most, most_of(most));
    }

  private:
    // What anchors are divided by: centre and logarithm of the size. Anchors that are close in these have a large IoU.
    struct Member {
        float position[4];
        uint32_t anchor;
    };

    static int64_t place_of(const T* values, T most) { return lowest_bit(at_least(values, most)); }

    static float finite_or_zero(T x) {
        const float value = static_cast<float>(x);
        return is_finite(value) ? value : 0;
    }

    static Member member_of(const T* anchors, int64_t a) {
        const T* const box = anchors + 4 * a;
        return {{finite_or_zero(box[0] / 2 + box[2] / 2), finite_or_zero(box[1] / 2 + box[3] / 2),
                 finite_or_zero(std::log(box[2] - box[0])), finite_or_zero(std::log(box[3] - box[1]))},
                static_cast<uint32_t>(a)};
    }

    // Sorts into groups, and these into blocks: halves again and again along the axis in which the members differ most.
    // False where the call was cancelled.
    static bool divide(Member* members, int64_t size, Pacer& pacer) {
        if (size <= kBlock) return true;
        if (pacer.cancelled(20 * size)) return false;
        const int64_t unit = size > kBlock * kBlock ? kBlock * kBlock : kBlock;
        const int64_t half = ((size + unit - 1) / unit + 1) / 2 * unit;
        select(members, size, half, widest_axis(members, size));
        return divide(members, half, pacer) && divide(members + half, size - half, pacer);
    }

    static int widest_axis(const Member* members, int64_t size) {
        float low[4], high[4];
        for (int axis = 0; axis < 4; ++axis) low[axis] = high[axis] = members[0].position[axis];
        for (int64_t i = 1; i < size; ++i) {
            for (int axis = 0; axis < 4; ++axis) {
                low[axis] = smaller(members[i].position[axis], low[axis]);
                high[axis] = larger(members[i].position[axis], high[axis]);
            }
        }
        int widest = 0;
        float most = -1;
        for (int axis = 0; axis < 4; ++axis) {
            const int log_size = axis | 2;  // distances are counted in sizes
            const float unit = axis == log_size ? 1 : std::exp((low[log_size] + high[log_size]) / 2);
            const float spread = (high[axis] - low[axis]) / unit;
            if (spread > most) most = spread, widest = axis;
        }
        return widest;
    }

    // Puts the lowest `count` first (Hoare's selection algorithm); count < size.
    static void select(Member* members, int64_t size, int64_t count, int axis) {
        for (int64_t begin = 0, end = size; end - begin > 1;) {
            const float a = members[begin].position[axis], b = members[(begin + end) / 2].position[axis];
            const float c = members[end - 1].position[axis];
            const float pivot = larger(smaller(a, b), smaller(larger(a, b), c));
            int64_t i = begin, j = end - 1;
            while (i <= j) {
                while (members[i].position[axis] < pivot) ++i;
                while (pivot < members[j].position[axis]) --j;
                if (i > j) break;
                const Member member = members[i];
                members[i++] = members[j];
                members[j--] = member;
            }
            if (count <= j) {
                end = j + 1;
            } else if (count >= i) {
                begin = i;
            } else {
                return;
            }
        }
    }

    void fill(int64_t b, const T* anchors, const Member* members, int64_t size) {
        AnchorBlock<T>& block = blocks[b];
        for (int64_t i = 0; i < kBlock; ++i) {
            constexpr T kNowhere[4] = {};
            const T* const box = i < size ? anchors + 4 * static_cast<int64_t>(members[i].anchor) : kNowhere;
            block.x1[i] = box[0], block.y1[i] = box[1], block.x2[i] = box[2], block.y2[i] = box[3];
            block.area[i] = area_of(box);
            block.anchor[i] = i < size ? members[i].anchor : 0;
            if (i >= size) continue;
            of_blocks[b / kBlock].widen(b % kBlock, box[0], box[1], box[2], box[3], box[2] - box[0], box[3] - box[1],
                                        block.area[i]);
        }
    }
};

}  // namespace fastssd::FASTSSD_ISA
