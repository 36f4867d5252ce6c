// A grid of boxes that answers: does any of them overlap this box by more than a threshold? Built for NMS, where boxes
// are asked one by one and those that are kept go in.
//
// An IoU over t bounds how far two boxes may differ: the ratio of their widths (heights) lies in (t, 1 / t), and their
// centres lie closer than a multiple of the larger width. So boxes are put in classes by size, a factor of 4 wide, each
// with square cells (after scaling by the mean width and height) in proportion. A box goes into every cell, of its
// own class and of larger classes within the ratio, where the centre of a box of that class may lie that overlaps it too
// much; the cell that holds the centre of a box then knows all, and is asked in the box's own class and in larger ones.
// Cells are places in one hash table: what lands there by accident costs time and changes nothing, since the overlap is
// computed anyway. Memory is linear in the number of boxes, whatever their coordinates.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/boxes.h"
#include "ops/iou.h"
#include "support/buffer.h"
#include "support/math.h"
#include "support/sort.h"

namespace fastssd::FASTSSD_ISA {

#if defined(__GNUC__)
#define FASTSSD_PREFETCH(address) __builtin_prefetch(address)
#else
#define FASTSSD_PREFETCH(address) static_cast<void>(address)
#endif

// Whether the IoU of two boxes exceeds a threshold, mostly without dividing: with areas a and b, inter / (a + b - inter)
// > t means inter > t / (1 + t) * (a + b). Only within rounding of that is the quotient itself looked at.
template <typename T>
struct OverlapTest {
    T limit;        // of the quotient
    T low, high;    // inter > low * (a + b) is necessary, inter > high * (a + b) is sufficient

    // Under this area a product may have lost its bits to underflow, and only the quotient tells.
    static constexpr T kLeastArea = sizeof(T) == 4 ? T(1e-28) : T(1e-280);

    explicit OverlapTest(T threshold) : limit(threshold), low(T(0)), high(kInf<T>) {
        constexpr double kMargin = 1e-5, kLeast = 1e-6;
        const double t = static_cast<double>(threshold);
        if (t < kLeast) return;
        low = static_cast<T>(t / (1 + t) * (1 - kMargin));
        high = static_cast<T>(t / (1 + t) * (1 + kMargin));
    }

    // Where the union is 0 or NaN so is the quotient NaN; it is negative for no pair.
    bool exact(T inter, T areas) const { return inter / (areas - inter) > limit; }
};

template <typename T>
class BoxGrid {
  public:
    // For boxes of finite area, at least OverlapTest<T>::kLeastArea, all of which are among the first n of `boxes`.
    BoxGrid(const BoxColumns<T>& boxes, int64_t n, const OverlapTest<T>& test)
        : test_(test), num_buckets_(buckets_for(n)), blocks_(2 * num_buckets_), links_(2 * num_buckets_) {
        std::memset(blocks_.data(), 0, static_cast<std::size_t>(num_buckets_) * sizeof(Block));
        std::memset(links_.data(), 0, static_cast<std::size_t>(num_buckets_) * sizeof(Link));
        used_ = num_buckets_;
        measure(boxes, n);
    }

    struct Place {
        T x, y;              // the centre
        int first, last;     // classes of which a box may overlap this one
        uint32_t bucket;     // in the first of them
    };

    // Does not look into the table, but starts to load what suppresses() will need.
    Place locate(const Box<T>& box) const {
        Place place;
        place.x = box.x1 * T(0.5) + box.x2 * T(0.5);
        place.y = box.y1 * T(0.5) + box.y2 * T(0.5);
        const T size = size_of(box.x2 - box.x1, box.y2 - box.y1);
        place.first = class_of(size);
        place.last = smaller(class_of(size * most_ratio_), last_class_);
        place.bucket = bucket(place.first, cell(place.first, place.x, kX), cell(place.first, place.y, kY));
        FASTSSD_PREFETCH(&blocks_[place.bucket]);
        return place;
    }

    // Whether a box of the grid overlaps `box` by more than the threshold. Adds what it cost, in ns, to `work`.
    bool suppresses(const Box<T>& box, const Place& place, int64_t& work) const {
        if (chain_suppresses(place.bucket, box, work)) return true;
        for (int c = place.first + 1; c <= place.last; ++c) {
            if (!cells_[c].occupied) continue;
            if (chain_suppresses(bucket(c, cell(c, place.x, kX), cell(c, place.y, kY)), box, work)) return true;
        }
        return false;
    }

    void insert(const Box<T>& box, const Place& place) {
        for (int c = place.first; c <= place.last; ++c) {
            if (!cells_[c].occupied) continue;
            const T dx = reach(box.x2 - box.x1, cells_[c].most[kX]), dy = reach(box.y2 - box.y1, cells_[c].most[kY]);
            const int64_t left = cell(c, place.x - dx, kX), right = cell(c, place.x + dx, kX);
            const int64_t top = cell(c, place.y - dy, kY), bottom = cell(c, place.y + dy, kY);
            for (int64_t y = top; y <= bottom; ++y) {
                for (int64_t x = left; x <= right; ++x) append(bucket(c, x, y), box);
            }
        }
    }

  private:
    enum Axis { kX = 0, kY = 1 };
    static constexpr int kLanes = 4;
    static constexpr int kExponentBits = sizeof(T) == 4 ? 8 : 11;
    static constexpr int kMantissaBits = 8 * static_cast<int>(sizeof(T)) - 1 - kExponentBits;
    static constexpr int kClasses = (1 << (kExponentBits - 1)) + 1;

    // One cache line for float. Places that are not taken hold boxes of no extent, which overlap nothing.
    struct Block {
        T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];
    };
    struct Link {
        uint32_t next, count;
    };
    struct Cells {
        T inverse[2];  // 1 / the extent of a cell
        T most[2];     // the largest width and height of the class
        bool occupied;
    };

    static int64_t buckets_for(int64_t n) {
        int64_t buckets = 64;
        while (buckets < n / 2) buckets *= 2;
        return buckets;
    }

    static int class_of(T size) {
        KeyOf<T> bits;
        std::memcpy(&bits, &size, sizeof(T));
        return static_cast<int>(((bits >> kMantissaBits) + 1) >> 1);
    }

    // 1 is twice the mean: there a class ends, so that most boxes are in the one below.
    T size_of(T width, T height) const {
        return positive_part(larger(width * scale_[kX], height * scale_[kY]));
    }

    void measure(const BoxColumns<T>& boxes, int64_t n) {
        double sum[2] = {0, 0};
        T furthest = T(0);
        const double share = 0.5 / static_cast<double>(n);
        for (int64_t i = 0; i < n; ++i) {
            if (!(boxes.area[i] > T(0) && boxes.area[i] < kInf<T>)) continue;
            sum[kX] += static_cast<double>(boxes.x2[i] - boxes.x1[i]) * share;
            sum[kY] += static_cast<double>(boxes.y2[i] - boxes.y1[i]) * share;
            furthest = larger(furthest, larger(larger(-boxes.x1[i], boxes.x2[i]), larger(-boxes.y1[i], boxes.y2[i])));
        }
        constexpr double kTiny = 4 * static_cast<double>(std::numeric_limits<T>::min());
        T mean[2];
        for (int axis = 0; axis < 2; ++axis) {
            mean[axis] = static_cast<T>(larger(4 * sum[axis], kTiny));
            scale_[axis] = T(1) / mean[axis];
        }
        const double t = static_cast<double>(test_.limit);
        most_ratio_ = static_cast<T>((1 + kMargin) / larger(t, 1e-30));
        same_reach_ = static_cast<T>(1 - t + kMargin);
        larger_reach_ = static_cast<T>(larger(1 - 2 * t, 0.0));
        slack_ = 4 * std::numeric_limits<T>::epsilon() * furthest + static_cast<T>(kTiny);

        for (Cells& cells : cells_) cells = {};
        last_class_ = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (!(boxes.area[i] > T(0) && boxes.area[i] < kInf<T>)) continue;
            const int c = class_of(size_of(boxes.x2[i] - boxes.x1[i], boxes.y2[i] - boxes.y1[i]));
            cells_[c].occupied = true;
            last_class_ = larger(last_class_, c);
        }
        for (int c = 0; c < kClasses; ++c) {
            if (!cells_[c].occupied) continue;
            const double most = std::ldexp(1.0, smaller(2 * c + 2 - (1 << (kExponentBits - 1)), 1000));
            for (int axis = 0; axis < 2; ++axis) {
                const double extent = most * static_cast<double>(mean[axis]) * (1 + kMargin);
                const double wanted = larger(extent * larger(2 * (1 - t), 0.1), 4 * static_cast<double>(slack_));
                cells_[c].most[axis] = clamped(extent);
                cells_[c].inverse[axis] = clamped(1 / wanted);
            }
        }
    }

    static T clamped(double value) {
        constexpr double kMost = static_cast<double>(std::numeric_limits<T>::max());
        return static_cast<T>(smaller(value, kMost));
    }

    // How far from the centre of a box of this width the centre of one that overlaps it too much may lie, where the
    // other's width is at most `most`.
    T reach(T width, T most) const {
        const T other = larger(width, smaller(width * most_ratio_, most));
        const T away = larger(width * same_reach_, (width + other * larger_reach_) * T(0.5));
        return away * T(1 + kMargin) + slack_;
    }

    // Rises with `position`, and that is all that is asked of it.
    int64_t cell(int c, T position, Axis axis) const {
        constexpr T kMost = T(4e18);
        const T at = position * cells_[c].inverse[axis];
        return static_cast<int64_t>(larger(smaller(at, kMost), -kMost));
    }

    uint32_t bucket(int c, int64_t x, int64_t y) const {
        const uint64_t hash = static_cast<uint64_t>(x) + static_cast<uint64_t>(y) * 0x9e3779b1u +
                              static_cast<uint64_t>(c) * 0x85ebca6bu;
        return static_cast<uint32_t>(hash & static_cast<uint64_t>(num_buckets_ - 1));
    }

    bool chain_suppresses(uint32_t b, const Box<T>& box, int64_t& work) const {
        for (;;) {
            const Block& block = blocks_[b];
            work += 4;
            if (block_suppresses(block, box)) return true;
            if (!(block.x2[kLanes - 1] > block.x1[kLanes - 1])) return false;
            b = links_[b].next;
            if (b == 0) return false;
        }
    }

    bool block_suppresses(const Block& block, const Box<T>& box) const {
        using Flag = typename Bits<T>::Signed;
        T inter[kLanes], areas[kLanes];
        Flag maybe = 0, surely = 0;
        for (int lane = 0; lane < kLanes; ++lane) {
            const T width = positive_part(smaller(block.x2[lane], box.x2) - larger(block.x1[lane], box.x1));
            const T height = positive_part(smaller(block.y2[lane], box.y2) - larger(block.y1[lane], box.y1));
            inter[lane] = width * height;
            areas[lane] = (block.x2[lane] - block.x1[lane]) * (block.y2[lane] - block.y1[lane]) + box.area;
            maybe |= static_cast<Flag>(inter[lane] > test_.low * areas[lane]);
            surely |= static_cast<Flag>(inter[lane] > test_.high * areas[lane]);
        }
        if (maybe == 0) return false;
        if (surely != 0) return true;
        for (int lane = 0; lane < kLanes; ++lane) {
            if (test_.exact(inter[lane], areas[lane])) return true;
        }
        return false;
    }

    void append(uint32_t b, const Box<T>& box) {
        while (links_[b].count == kLanes) {
            if (links_[b].next == 0) {
                blocks_.reserve(used_ + 1, used_);
                links_.reserve(used_ + 1, used_);
                std::memset(&blocks_[used_], 0, sizeof(Block));
                links_[used_] = {0, 0};
                links_[b].next = static_cast<uint32_t>(used_++);
            }
            b = links_[b].next;
        }
        const uint32_t lane = links_[b].count++;
        Block& block = blocks_[b];
        block.x1[lane] = box.x1;
        block.y1[lane] = box.y1;
        block.x2[lane] = box.x2;
        block.y2[lane] = box.y2;
    }

    static constexpr double kMargin = 1e-5;  // far above the rounding of any bound

    const OverlapTest<T> test_;
    const int64_t num_buckets_;
    Buffer<Block> blocks_;  // the buckets, then what they overflow into
    Buffer<Link> links_;    // of each block
    int64_t used_;
    T scale_[2], most_ratio_, same_reach_, larger_reach_, slack_;
    int last_class_;
    Cells cells_[kClasses];
};

}  // namespace fastssd::FASTSSD_ISA
