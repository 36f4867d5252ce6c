// Anchors, which are the same in every call, laid out so that a box meets only those that can matter to it. They are
// sorted by area, by shape and along a Morton curve, and cut into blocks of 16; 16 blocks are a group. A block and a
// group have bounds, and from the bounds follows an IoU that no anchor inside exceeds. The bound is computed by the
// very operations of iou_of, each of which is monotone after rounding too, so it holds to the last bit and needs no
// margin.
#pragma once

#include "ops/boxes.h"
#include "ops/iou.h"
#include "support/buffer.h"
#include "support/masks.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kBlock = kMaskWidth;  // anchors in a block, blocks in a group, groups in a row of bounds

inline int64_t blocks_for(int64_t n) { return (n + kBlock - 1) / kBlock; }

// What encloses the boxes of each of 16 sets: the hull, the largest width and height, the smallest area.
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

    // An IoU that no box of a set exceeds; infinity where nothing is known.
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

// Anchors of one block by coordinate. Places that no anchor fills hold a point, whose IoU is 0.
template <typename T>
struct AnchorBlock {
    T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
    uint32_t anchor[kBlock];  // where they stood before

    void iou(const Box<T>& box, T* FASTSSD_RESTRICT out) const {
        for (int64_t i = 0; i < kBlock; ++i) {
            const T wide = positive_part(smaller(box.x2, x2[i]) - larger(box.x1, x1[i]));
            const T high = positive_part(smaller(box.y2, y2[i]) - larger(box.y1, y1[i]));
            const T inter = wide * high;
            const T sum = box.area + area[i] - inter;
            out[i] = sum > T(0) ? inter / sum : T(0);
        }
    }
};

// A view of memory of the caller's, of bytes(num_anchors), aligned as T is.
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

    void build(const T* anchors) {
        Buffer<Entry<uint64_t>> keys(num_anchors), scratch(num_anchors);
        if (!write_keys(anchors, keys.data())) return;
        const Entry<uint64_t>* const sorted = sort_entries(keys.data(), scratch.data(), num_anchors);
        Pacer pacer;
        for (int64_t i = 0; i < num_groups; ++i) of_blocks[i].clear();
        for (int64_t i = 0; i < num_rows; ++i) of_groups[i].clear();
        for (int64_t b = 0; b < num_blocks; ++b) {
            fill(b, anchors, sorted + b * kBlock, size_of(b));
            if (pacer.cancelled(20 * kBlock)) return;
        }
        for (int64_t b = 0; b < num_blocks; ++b) {
            const Bounds<T>& from = of_blocks[b / kBlock];
            const int64_t i = b % kBlock, group = b / kBlock;
            of_groups[group / kBlock].widen(group % kBlock, from.x1[i], from.y1[i], from.x2[i], from.y2[i],
                                            from.width[i], from.height[i], from.area[i]);
        }
    }

    // Calls visit(block) for the blocks that may matter: demand.groups(bounds) and demand.blocks(bounds, first block)
    // say which of 16 do, where a bound is an IoU that no anchor inside exceeds.
    template <typename Demand, typename Visit>
    void search(const Box<T>& box, const Demand& demand, const Visit& visit) const {
        T of_group[kBlock], of_block[kBlock];
        for (int64_t row = 0; row < num_rows; ++row) {
            of_groups[row].most(box, of_group);
            for (uint64_t groups = demand.groups(of_group); groups != 0; groups &= groups - 1) {
                const int64_t group = row * kBlock + lowest_bit(groups), first = group * kBlock;
                if (group >= num_groups) return;
                of_blocks[group].most(box, of_block);
                for (uint64_t left = demand.blocks(of_block, first); left != 0; left &= left - 1) {
                    const int64_t block = first + lowest_bit(left);
                    if (block >= num_blocks) return;
                    visit(block);
                }
            }
        }
    }

    // The block whose bound is the largest, found by going where the bound of the group is.
    int64_t likeliest(const Box<T>& box) const {
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
    static constexpr T kOffCentre = T(1.19);  // squares and powers of two are common: they must not lie on an edge

    // Half an octave, from the exponent and one bit of the fraction.
    static uint64_t half_octave(T positive) {
        const float value = static_cast<float>(positive * kOffCentre);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return bits >> 22 & 511;
    }

    static int64_t place_of(const T* values, T most) { return lowest_bit(at_least(values, most)); }

    static uint64_t spread(uint64_t x) {  // a zero after each of 16 bits
        x = (x | x << 8) & 0x00FF00FF;
        x = (x | x << 4) & 0x0F0F0F0F;
        x = (x | x << 2) & 0x33333333;
        return (x | x << 1) & 0x55555555;
    }

    static uint64_t cell(T at, T low, T scale) {
        const T place = (at - low) * scale;
        return place >= T(0) && place <= T(65535) ? static_cast<uint64_t>(place) : 0;
    }

    bool write_keys(const T* anchors, Entry<uint64_t>* keys) const {
        T low_x = kInf<T>, low_y = kInf<T>, high_x = -kInf<T>, high_y = -kInf<T>;
        Pacer pacer;
        for (int64_t a = 0; a < num_anchors; ++a) {
            const T* const box = anchors + 4 * a;
            const T x = box[0] / 2 + box[2] / 2, y = box[1] / 2 + box[3] / 2;
            low_x = smaller(x, low_x), high_x = larger(x, high_x);
            low_y = smaller(y, low_y), high_y = larger(y, high_y);
            if (pacer.cancelled(4)) return false;
        }
        const T scale_x = T(65535) / (high_x - low_x), scale_y = T(65535) / (high_y - low_y);
        for (int64_t a = 0; a < num_anchors; ++a) {
            const T* const box = anchors + 4 * a;
            const uint64_t x = cell(box[0] / 2 + box[2] / 2, low_x, scale_x);
            const uint64_t y = cell(box[1] / 2 + box[3] / 2, low_y, scale_y);
            const uint64_t area = half_octave(area_of(box)), shape = half_octave((box[2] - box[0]) / (box[3] - box[1]));
            keys[a] = {area << 41 | shape << 32 | spread(x) << 1 | spread(y), static_cast<uint32_t>(a)};
            if (pacer.cancelled(8)) return false;
        }
        return true;
    }

    void fill(int64_t b, const T* anchors, const Entry<uint64_t>* members, int64_t size) {
        AnchorBlock<T>& block = blocks[b];
        for (int64_t i = 0; i < kBlock; ++i) {
            constexpr T kNowhere[4] = {};
            const T* const box = i < size ? anchors + 4 * static_cast<int64_t>(members[i].index) : kNowhere;
            block.x1[i] = box[0], block.y1[i] = box[1], block.x2[i] = box[2], block.y2[i] = box[3];
            block.area[i] = area_of(box);
            block.anchor[i] = i < size ? members[i].index : 0;
            if (i >= size) continue;
            of_blocks[b / kBlock].widen(b % kBlock, box[0], box[1], box[2], box[3], box[2] - box[0], box[3] - box[1],
                                        block.area[i]);
        }
    }
};

}  // namespace fastssd::FASTSSD_ISA
