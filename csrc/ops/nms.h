// Non-maximum suppression. Candidates (finite box, score not NaN) are sorted by descending score and turned into
// columns. Where they are few or crowded, the first block of those alive is settled pair by pair; each box that it
// keeps is then compared with all the rest in vectorised loops, tile by tile; the boxes still alive move up and the
// next block begins. So crowded input shrinks fast. Where it does not, each box is looked up in a grid of the kept
// boxes (geometry/grid.h), which costs n log n in all. Most calls on many boxes use cells of all boxes instead
// (geometry/cells.h). With groups, each group is settled alone and the kept boxes are gathered in order of score.
#pragma once

#include "geometry/box.h"
#include "geometry/cells.h"
#include "geometry/grid.h"
#include "geometry/kept_boxes.h"
#include "support/buffer.h"
#include "support/exp.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/prefetch.h"
#include "support/sort.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

constexpr int64_t kFew = 32;  // up to so many boxes nothing is allocated; a multiple of Suppressor::kStep
template <typename T>
using Entries = SmallBuffer<Entry<KeyOf<T>>, kFew>;

// Greedy NMS of sorted boxes: scratch for up to n of them, as columns in order of descending score, each with an id.
template <typename T>
class Suppressor {
  public:
    explicit Suppressor(int64_t n)
        : block_(BoxColumns<T>::kColumns * padded(n)), boxes_(block_.data(), padded(n)), ids_(n), dead_(padded(n)) {}

    FASTSSD_INLINE void set(int64_t i, const T* box, uint32_t id) {
        boxes_.set(i, box);
        ids_[i] = id;
    }

    // Of the first n boxes. Calls keep(id) for each that is kept, in order. False where the call was cancelled.
    template <typename Keep>
    bool run(int64_t n, T limit, const Keep& keep) {
        if (limit >= T(1)) {  // no IoU is greater
            for (int64_t i = 0; i < n; ++i) keep(ids_[i]);
            return true;
        }
        constexpr T kNoBox[4] = {};
        for (int64_t i = n; i < padded(n); ++i) boxes_.set(i, kNoBox);
        const OverlapTest<T> test(limit);
        bool crowded = n < kGridFrom || is_crowded(n, test);
        while (n > 0) {
            if (!crowded) {
                const BoxSizes<T> sizes(boxes_, n);
                return sizes.regular() ? run_grid<true>(n, sizes, test, keep) : run_grid<false>(n, sizes, test, keep);
            }
            const int64_t head = smaller(kHead, n);
            int64_t kept[kHead];
            const int64_t num_kept = settle(head, test, kept);
            for (int64_t k = 0; k < num_kept; ++k) keep(ids_[kept[k]]);
            for (int64_t i = head; i < n; ++i) dead_[i] = 0;
            for (int64_t tile = head; tile < n; tile += kTile) {
                const int64_t stop = smaller(tile + kTile, n);
                for (int64_t k = 0; k < num_kept; ++k) sweep(Box<T>(boxes_, kept[k]), tile, stop, test);
                if (pacer_.cancelled(num_kept * kTile / 4)) return false;
            }
            if (pacer_.cancelled(n)) return false;
            int64_t num_alive = 0;
            for (int64_t i = head; i < n; ++i) {
                boxes_.copy(num_alive, i);
                ids_[num_alive] = ids_[i];
                num_alive += static_cast<int64_t>(dead_[i] == 0);
            }
            crowded = num_alive < kGridFrom || sweeping_pays(num_kept, n - head - num_alive, n - head);
            n = num_alive;
        }
        return true;
    }

  private:
    static constexpr int64_t kHead = 64, kTile = 512, kGridFrom = 256, kStep = 8;
    using Flag = typename Bits<T>::Signed;  // as wide as T, so that the sweep vectorises

    // To compare a block with the boxes alive costs each of them about 0.25 ns for every box kept; the grid costs each
    // about 30 ns once. If every block leaves the same share alive, sweeping costs less where this holds.
    static bool sweeping_pays(int64_t kept, int64_t killed, int64_t swept) { return 120 * killed > kept * swept; }

    // Tries a block on a sample.
    bool is_crowded(int64_t n, const OverlapTest<T>& test) {
        constexpr int64_t kTryHead = 32, kTry = 192;
        const int64_t stop = smaller(kTryHead + kTry, n);
        int64_t kept[kHead];
        const int64_t num_kept = settle(kTryHead, test, kept);
        int64_t killed = 0;
        for (int64_t i = kTryHead; i < stop; ++i) dead_[i] = 0;
        for (int64_t k = 0; k < num_kept; ++k) sweep(Box<T>(boxes_, kept[k]), kTryHead, stop, test);
        for (int64_t i = kTryHead; i < stop; ++i) killed += static_cast<int64_t>(dead_[i] != 0);
        return sweeping_pays(num_kept, killed, stop - kTryHead);
    }

    // The first `head` boxes, pair by pair. kept[] gets the places of those that are kept; returns how many.
    int64_t settle(int64_t head, const OverlapTest<T>& test, int64_t* kept) {
        int64_t num_kept = 0;
        for (int64_t i = 0; i < padded(head); ++i) dead_[i] = 0;
        for (int64_t i = 0; i < head; ++i) {
            if (dead_[i]) continue;
            kept[num_kept++] = i;
            sweep(Box<T>(boxes_, i), i + 1, head, test);
        }
        return num_kept;
    }

    static int64_t padded(int64_t n) { return (n + kStep - 1) & -kStep; }

    // Marks the boxes that `box` suppresses, from the last multiple of kStep before `begin` to the next one after
    // `end`: so no vectorised loop has a remainder, which costs more than a few boxes. Marks on boxes that were settled
    // before are not read.
    void sweep(const Box<T>& box, int64_t begin, int64_t end, const OverlapTest<T>& test) {
        if (!test.can_overlap(box.area)) return;
        begin &= -kStep;
        const int64_t size = padded(end) - begin;
        Flag* FASTSSD_RESTRICT const dead = dead_.data() + begin;
        Flag unsure = 0;
        if (!test.tiny(box.area)) {
            for (int64_t i = 0; i < size; ++i) {
                const Box<T> other(boxes_, begin + i);
                const T inter = intersection(box, other), areas = box.area + other.area;
                const Flag surely = static_cast<Flag>(inter > test.high * areas);
                unsure |= static_cast<Flag>(inter > test.low * areas) ^ surely;
                dead[i] |= surely;
            }
            if (unsure == 0) return;
        }
        for (int64_t i = 0; i < size; ++i) {
            const Box<T> other(boxes_, begin + i);
            dead[i] |= static_cast<Flag>(test.exact(intersection(box, other), box.area + other.area));
        }
    }

    template <bool kRegular, typename Keep>
    bool run_grid(int64_t n, const BoxSizes<T>& sizes, const OverlapTest<T>& test, const Keep& keep) {
        constexpr int64_t kAhead = 32;
        BoxGrid<T, kRegular> grid(boxes_, n, sizes, test);
        KeptBoxes<T> tiny(1, static_cast<double>(test.limit));
        tiny.clear(1);
        typename BoxGrid<T, kRegular>::Place places[kAhead];
        for (int64_t begin = 0; begin < n; begin += kAhead) {
            const int64_t count = smaller(kAhead, n - begin);
            for (int64_t i = 0; i < count; ++i) places[i] = grid.locate(Box<T>(boxes_, begin + i));
            int64_t work = kAhead * 16;
            for (int64_t i = 0; i < count; ++i) {
                const Box<T> box(boxes_, begin + i);
                if (test.can_overlap(box.area)) {
                    if (grid.suppresses(box, places[i], work)) continue;
                    if (!kRegular && test.tiny(box.area)) {  // the grid may miss another tiny one
                        work += 4 * tiny.blocks_of(0);
                        if (tiny.suppress(box, 0)) continue;
                        tiny.add(box, 0);
                    }
                    grid.insert(box, places[i]);
                }
                keep(ids_[begin + i]);
            }
            if (pacer_.cancelled(work)) return false;
        }
        return true;
    }

    SmallBuffer<T, BoxColumns<T>::kColumns * kFew> block_;
    BoxColumns<T> boxes_;
    SmallBuffer<uint32_t, kFew> ids_;
    SmallBuffer<Flag, kFew> dead_;
    Pacer pacer_;
};

template <typename T>
FASTSSD_INLINE bool usable(const T* box, T score) {
    return is_finite(nan_unless_finite(box[0], box[1], box[2], box[3])) && score == score;
}

// The usable boxes by descending score, ties by lower index. `entries` and `scratch` hold n each.
template <typename T>
const Entry<KeyOf<T>>* sort_by_score(const T* boxes, const T* scores, int64_t n, Entry<KeyOf<T>>* entries,
                                     Entry<KeyOf<T>>* scratch, int64_t& count) {
    count = 0;
    for (int64_t i = 0; i < n; ++i) {
        entries[count] = {descending_key(scores[i]), static_cast<uint32_t>(i)};
        count += static_cast<int64_t>(usable(boxes + 4 * i, scores[i]));
    }
    return sort_entries(entries, scratch, count);
}

// The places in `order` by group, in each group as in `order`.
template <typename Key>
const Entry<uint64_t>* sort_by_group(const int64_t* idxs, const Entry<Key>* order, int64_t count,
                                     Entry<uint64_t>* entries, Entry<uint64_t>* scratch) {
    for (int64_t i = 0; i < count; ++i) entries[i] = {ascending_key(idxs[order[i].index]), static_cast<uint32_t>(i)};
    return sort_entries(entries, scratch, count);
}

template <typename T>
int64_t settle_sorted(const T* boxes, const Entry<KeyOf<T>>* order, int64_t count, T limit, int64_t* keep) {
    Suppressor<T> suppressor(count);
    for (int64_t i = 0; i < count; ++i) {
        constexpr int64_t kAhead = 24;
        FASTSSD_PREFETCH(boxes + 4 * int64_t{order[smaller(i + kAhead, count - 1)].index});
        suppressor.set(i, boxes + 4 * int64_t{order[i].index}, order[i].index);
    }
    int64_t kept = 0;
    suppressor.run(count, limit, [&](uint32_t id) { keep[kept++] = id; });
    return kept;
}

// NMS over boxes in cells. Scores go into buckets, the highest first, and in a bucket only the boxes still alive are
// sorted: in crowded input they are few.
template <typename T>
int64_t settle_in_cells(const T* boxes, const T* scores, int64_t n, BoxCells<T>& cells, const OverlapTest<T>& test,
                        int64_t* keep) {
    using Key = KeyOf<T>;
    constexpr int64_t kBatch = 32, kMostWork = 30;
    Buffer<Entry<Key>> entries(n), bucketed(n), scratch(n);
    Buffer<Key> key_buffer(n);
    Key* FASTSSD_RESTRICT const keys = key_buffer.data();
    constexpr Key kNone = ~Key(0);  // of no score
    Key least = kNone, most = 0;
    for (int64_t i = 0; i < n; ++i) {
        keys[i] = scores[i] == scores[i] ? descending_key(scores[i]) : kNone;
        least = smaller(least, keys[i]);
        most = larger(most, keys[i] == kNone ? Key(0) : keys[i]);
    }
    if (least == kNone) return 0;
    const int bucket_bits = n < 4096 ? 10 : 12;
    int shift = 0;
    while ((most - least) >> shift >> bucket_bits != 0) ++shift;
    const Key buckets = Key(1) << bucket_bits;
    const auto bucket_of = [&](Key key) { return key == kNone ? buckets : (key - least) >> shift; };
    uint32_t ends[(1 << 12) + 2] = {};
    for (int64_t i = 0; i < n; ++i) ++ends[bucket_of(keys[i]) + 1];
    for (Key b = 0; b < buckets; ++b) ends[b + 1] += ends[b];
    const int64_t count = ends[buckets];
    for (int64_t i = 0; i < n; ++i) bucketed[ends[bucket_of(keys[i])]++] = {keys[i], cells.place_of(i)};

    Pacer pacer;
    int64_t kept = 0, budget = kMostWork * n;
    for (int64_t b = 0, begin = 0; begin < count;) {
        int64_t end = ends[b++];
        while (end - begin < kBatch && end < count) end = ends[b++];
        if (budget < 0) end = count;
        int64_t num_alive = 0;
        for (int64_t i = begin; i < end; ++i) {
            entries[num_alive] = bucketed[i];
            num_alive += static_cast<int64_t>(cells.alive(bucketed[i].index));
        }
        begin = end;
        Entry<Key>* const order = sort_entries(entries.data(), scratch.data(), num_alive);
        if (budget < 0) {
            for (int64_t i = 0; i < num_alive; ++i) order[i].index = cells.id(order[i].index);
            return kept + settle_sorted(boxes, order, num_alive, test.limit, keep + kept);
        }
        if (pacer.cancelled(4 * (kBatch + num_alive))) return 0;
        for (int64_t i = 0; i < num_alive; ++i) {
            const uint32_t place = order[i].index;
            if (!cells.alive(place)) continue;
            keep[kept++] = cells.id(place);
            const int64_t work = cells.suppress_around(place, test);
            if (pacer.cancelled(work / 2)) return 0;
            budget -= work;
            if (budget < 0) {  // the rest of these goes back to the buckets
                for (int64_t k = num_alive; --k > i;) bucketed[--begin] = order[k];
                break;
            }
        }
    }
    return kept;
}

template <typename T>
int64_t nms(const NmsTask<T>& task) {
    constexpr int64_t kCellsFrom = 256, kCellsTo = int64_t{1} << 30;
    const T *const boxes = task.boxes, *const scores = task.scores;
    const int64_t n = task.n;
    const T limit = round_down(T(), task.iou_threshold);
    if (n >= kCellsFrom && n < kCellsTo) {
        const OverlapTest<T> test(limit);
        BoxCells<T> cells(n);
        if (cells.load(boxes, test)) return settle_in_cells(boxes, scores, n, cells, test, task.keep);
    }
    Entries<T> entries(n), scratch(n);
    int64_t count = 0;
    const Entry<KeyOf<T>>* const order = sort_by_score(boxes, scores, n, entries.data(), scratch.data(), count);
    return settle_sorted(boxes, order, count, limit, task.keep);
}

template <typename T>
int64_t batched_nms(const BatchedNmsTask<T>& task) {
    const T* const boxes = task.boxes;
    Entries<T> entries(task.n), scratch(task.n);
    int64_t count = 0;
    const Entry<KeyOf<T>>* const order =
        sort_by_score(boxes, task.scores, task.n, entries.data(), scratch.data(), count);

    SmallBuffer<Entry<uint64_t>, kFew> grouped(count), group_scratch(count);
    const Entry<uint64_t>* const groups = sort_by_group(task.idxs, order, count, grouped.data(), group_scratch.data());

    SmallBuffer<bool, kFew> is_kept(count);
    for (int64_t i = 0; i < count; ++i) is_kept[i] = false;
    Suppressor<T> suppressor(count);
    const T limit = round_down(T(), task.iou_threshold);
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        for (; end < count && groups[end].key == groups[begin].key; ++end) {
            const uint32_t place = groups[end].index;
            suppressor.set(end - begin, boxes + 4 * int64_t{order[place].index}, place);
        }
        if (!suppressor.run(end - begin, limit, [&](uint32_t place) { is_kept[place] = true; })) return 0;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (is_kept[i]) task.keep[kept++] = order[i].index;
    }
    return kept;
}

// Soft-NMS (arXiv:1704.04503): quadratic, because every box that is taken may change every score. The boxes alive stay
// in order of their index, so that the first of the highest scores is the one to take.
template <typename T>
int64_t soft_nms(const SoftNmsTask<T>& task) {
    const int64_t n = task.n;
    const SoftNmsMethod method = task.method;
    Buffer<T> block(BoxColumns<T>::kColumns * n), current(n), overlap(n);
    Buffer<uint32_t> ids(n);
    BoxColumns<T> columns(block.data(), n);
    const T lowest = round_down(T(), task.score_threshold), limit = round_down(T(), task.iou_threshold);
    const T sigma = static_cast<T>(task.sigma);
    int64_t num_alive = 0;
    for (int64_t i = 0; i < n; ++i) {
        columns.set(num_alive, task.boxes + 4 * i);
        current[num_alive] = task.scores[i];
        ids[num_alive] = static_cast<uint32_t>(i);
        // The copies are checked, because no other thread writes to them: index_of() below finds what max_of() found.
        num_alive +=
            static_cast<int64_t>((columns.area[num_alive] == columns.area[num_alive]) & (current[num_alive] > lowest));
    }
    Pacer pacer;
    int64_t kept = 0;
    while (num_alive > 0) {
        const int64_t best = index_of(current.data(), max_of(current.data(), num_alive));
        const Box<T> box(columns, best);
        task.keep[kept] = ids[best];
        task.kept_scores[kept++] = current[best];
        current[best] = -kInf<T>;

        T* FASTSSD_RESTRICT const iou = overlap.data();
        for (int64_t i = 0; i < num_alive; ++i) iou[i] = iou_of(box, Box<T>(columns, i));
        int64_t left = 0;
        for (int64_t i = 0; i < num_alive; ++i) {
            T decay = T(1);
            if (method == SoftNmsMethod::linear) {
                if (iou[i] > limit) decay = T(1) - iou[i];
            } else if (iou[i] > T(0)) {
                decay = std::exp(-(iou[i] * iou[i]) / sigma);
            }
            const T score = current[i] * decay;
            columns.copy(left, i);
            ids[left] = ids[i];
            current[left] = score;
            left += static_cast<int64_t>((score > lowest) & (i != best));
        }
        if (pacer.cancelled(4 * num_alive)) return 0;
        num_alive = left;
    }
    return kept;
}

// The factors of Matrix NMS for n boxes in order of descending score: one pass over the pairs, because the highest IoU
// of a box with those before it is known when its turn comes. `exp` rises, so the least gaussian quotient is `exp` of
// the least exponent, and one call a box is enough. False where the call was cancelled.
template <typename T>
bool matrix_decay(const BoxColumns<T>& boxes, int64_t n, SoftNmsMethod method, T sigma, T* FASTSSD_RESTRICT highest,
                  T* FASTSSD_RESTRICT decay, Pacer& pacer) {
    const bool linear = method == SoftNmsMethod::linear;
    for (int64_t j = 0; j < n; ++j) highest[j] = T(0);
    for (int64_t j = 0; j < n; ++j) decay[j] = linear ? T(1) : T(0);
    for (int64_t i = 0; i < n; ++i) {
        const Box<T> box(boxes, i);
        const T before = highest[i], rest = T(1) - before, square = before * before;
        if (linear) {
            for (int64_t j = i + 1; j < n; ++j) {
                const T iou = iou_of(box, Box<T>(boxes, j));
                decay[j] = smaller((T(1) - iou) / rest, decay[j]);  // infinity and NaN, where `rest` is 0, are not
                highest[j] = larger(iou, highest[j]);
            }
        } else {
            for (int64_t j = i + 1; j < n; ++j) {
                const T iou = iou_of(box, Box<T>(boxes, j));
                decay[j] = smaller(square - iou * iou, decay[j]);
                highest[j] = larger(iou, highest[j]);
            }
        }
        if (pacer.cancelled(2 * (n - i))) return false;
    }
    if (!linear) {
        for (int64_t j = 0; j < n; ++j) decay[j] = exp_of(decay[j] / sigma);
    }
    return true;
}

template <typename T>
int64_t matrix_nms(const MatrixNmsTask<T>& task) {
    const int64_t n = task.n;
    const T lowest = round_down(T(), task.score_threshold), sigma = static_cast<T>(task.sigma);
    Buffer<Entry<KeyOf<T>>> entries(n), scratch(n);
    int64_t count = 0;
    const Entry<KeyOf<T>>* const order =
        sort_by_score(task.boxes, task.scores, n, entries.data(), scratch.data(), count);
    const auto score_of = [](const Entry<KeyOf<T>>& entry) { return value_of_descending_key<T>(entry.key); };
    while (count > 0 && !(score_of(order[count - 1]) > lowest)) --count;

    Buffer<Entry<uint64_t>> grouped(count), group_scratch(count);
    const Entry<uint64_t>* const groups = sort_by_group(task.idxs, order, count, grouped.data(), group_scratch.data());
    Buffer<T> block(BoxColumns<T>::kColumns * count), highest(count), decay(count), lowered(n);
    BoxColumns<T> columns(block.data(), count);
    for (int64_t i = 0; i < n; ++i) lowered[i] = -kInf<T>;
    Pacer pacer;
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        for (; end < count && groups[end].key == groups[begin].key; ++end) {
            columns.set(end - begin, task.boxes + 4 * int64_t{order[groups[end].index].index});
        }
        if (!matrix_decay(columns, end - begin, task.method, sigma, highest.data(), decay.data(), pacer)) return 0;
        for (int64_t i = begin; i < end; ++i) {
            const Entry<KeyOf<T>>& entry = order[groups[i].index];
            lowered[entry.index] = score_of(entry) * decay[i - begin];
        }
    }

    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
        entries[kept] = {descending_key(lowered[i]), static_cast<uint32_t>(i)};
        kept += static_cast<int64_t>(lowered[i] > lowest);
    }
    const Entry<KeyOf<T>>* const sorted = sort_entries(entries.data(), scratch.data(), kept);
    for (int64_t i = 0; i < kept; ++i) {
        task.keep[i] = sorted[i].index;
        task.kept_scores[i] = score_of(sorted[i]);
    }
    return kept;
}

}  // namespace fastssd::FASTSSD_ISA
