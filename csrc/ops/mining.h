// Hard negative mining of k anchors. Losses become signed keys in the same order, with NaN above all and anchors that
// may not be mined below all. Each group of a few anchors is represented by its largest key. Bisection
// (support/select.h) finds a bound that about k groups reach, and only the members of these groups are looked at: the k
// largest keys are all among them. Bisection among the members gives the k-th largest key exactly. Anchors that reach
// it are mined; where too many are equal to it, the first of them.
//
// Source: SSD paper, section 2.2, "Hard negative mining".
#pragma once

#include "support/buffer.h"
#include "support/math.h"
#include "support/poll.h"
#include "support/select.h"
#include "support/simd.h"
#include "tasks.h"

namespace fastssd::FASTSSD_ISA {

// How many negatives to mine, if there are so many: max(ceil(ratio * positives), least), at most n. Without positives
// the ratio asks for none, even where it is infinite.
inline int64_t wanted_negatives(double ratio, int64_t positives, int64_t least, int64_t n) {
    const double by_ratio = positives > 0 ? smaller(ratio * static_cast<double>(positives), static_cast<double>(n)) : 0;
    return smaller(larger(static_cast<int64_t>(std::ceil(by_ratio)), least), n);
}

template <typename T>
class Miner {
  public:
    explicit Miner(int64_t num_anchors)
        : n_(num_anchors), groups_(padded(n_)), group_ids_(padded(n_)), keys_(padded(n_)), anchors_(padded(n_)) {}

    void run(const T* loss, const bool* positive, double neg_pos_ratio, int64_t min_negatives, bool* mined) {
        loss_ = loss;
        positive_ = reinterpret_cast<const uint8_t*>(positive);
        std::memset(mined, 0, static_cast<std::size_t>(n_));
        const int64_t wanted = wanted_negatives(neg_pos_ratio, count_positives(), min_negatives, n_);
        if (wanted == 0) return;

        const int64_t found = collect(wanted);
        const Key least = bound_of_largest(keys_.data(), found, wanted, wanted, kLowest + 1);
        int64_t above = 0, reached = 0;
        for (int64_t i = 0; i < found; ++i) {
            mined[anchors_[i]] = keys_[i] >= least;
            reached += static_cast<int64_t>(keys_[i] >= least);
            above += static_cast<int64_t>(keys_[i] > least);
        }
        if (reached > wanted) drop_last_equals(least, wanted - above, mined);
    }

  private:
    using Key = SignedKeyOf<T>;
    static constexpr int64_t kLanes = Lanes<Key>::kCount, kMostRows = 32;
    static constexpr Key kLowest = std::numeric_limits<Key>::min();  // may not be mined

    static int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

    // Without branches, so that loops vectorise.
    static FASTSSD_INLINE Key key_of(T loss, uint8_t positive) {
        constexpr Key kMagnitude = std::numeric_limits<Key>::max();
        const T value = loss + T(0);  // no -0
        Key key;
        std::memcpy(&key, &value, sizeof(T));
        key ^= -static_cast<Key>(key < 0) & kMagnitude;
        key = loss == loss ? key : kMagnitude - 1;
        const Key barred = -static_cast<Key>(static_cast<Key>(positive != 0) | static_cast<Key>(loss == -kInf<T>));
        return (key & ~barred) | (kLowest & barred);
    }

    // Counted in bytes, in parts so short that no byte overflows.
    int64_t count_positives() const {
        constexpr int64_t kBytes = 64, kMost = 255;
        int64_t positives = 0, a = 0;
        while (n_ - a >= kBytes) {
            uint8_t counts[kBytes] = {};
            for (int64_t end = smaller(a + kBytes * kMost, n_); a + kBytes <= end; a += kBytes) {
                for (int64_t i = 0; i < kBytes; ++i)
                    counts[i] = static_cast<uint8_t>(counts[i] + (positive_[a + i] != 0));
            }
            for (const uint8_t count : counts) positives += count;
        }
        for (; a < n_; ++a) positives += positive_[a] != 0;
        return positives;
    }

    // Collects anchors with their keys: the `wanted` largest (all that may be mined, if they are fewer), and few
    // others. Returns how many.
    int64_t collect(int64_t wanted) {
        // A group is a lane of `size` consecutive rows of kLanes anchors.
        int64_t size = kMostRows;
        while (size > 1 && n_ < 8 * wanted * size) size /= 2;
        const int64_t stride = kLanes * size, num_groups = (n_ + stride - 1) / stride * kLanes;
        Key block[kLanes * kMostRows];
        for (int64_t begin = 0; begin < n_; begin += stride) {
            const int64_t used = smaller(stride, n_ - begin);
            for (int64_t i = 0; i < used; ++i) block[i] = key_of(loss_[begin + i], positive_[begin + i]);
            for (int64_t i = used; i < stride; ++i) block[i] = kLowest;
            Lanes<Key> most = Lanes<Key>::load(block);
            for (int64_t i = kLanes; i < stride; i += kLanes) most = larger(Lanes<Key>::load(block + i), most);
            most.store(groups_.data() + begin / size);
        }
        const Key bound = bound_of_largest(groups_.data(), num_groups, wanted, wanted + wanted / 8, kLowest + 1);
        int64_t num_found = 0;
        for (int64_t g = 0; g < num_groups; ++g) {
            group_ids_[num_found] = static_cast<uint32_t>(g);
            num_found += static_cast<int64_t>(groups_[g] >= bound);
        }
        Key* FASTSSD_RESTRICT const keys = keys_.data();
        uint32_t* FASTSSD_RESTRICT const anchors = anchors_.data();
        int64_t found = 0;
        for (int64_t i = 0; i < num_found; ++i) {
            const int64_t g = group_ids_[i];
            const int64_t first = g / kLanes * stride + g % kLanes;
            const int64_t stop = smaller(first + stride, n_);
            for (int64_t a = first; a < stop; a += kLanes) {
                const Key key = key_of(loss_[a], positive_[a]);
                keys[found] = key;
                anchors[found] = static_cast<uint32_t>(a);
                found += static_cast<int64_t>(key >= bound);
            }
        }
        return found;
    }

    // Only the first `allowed` of the anchors with this key stay mined.
    void drop_last_equals(Key key, int64_t allowed, bool* mined) const {
        for (int64_t a = 0; a < n_; ++a) {
            if (key_of(loss_[a], positive_[a]) == key && --allowed < 0) mined[a] = false;
        }
    }

    const int64_t n_;
    const T* loss_ = nullptr;
    const uint8_t* positive_ = nullptr;  // any byte but 0 is true: a bool that is a view of other bytes holds them
    Buffer<Key> groups_;
    Buffer<uint32_t> group_ids_;
    Buffer<Key> keys_;
    Buffer<uint32_t> anchors_;
};

template <typename T>
void mine_hard_negatives(const MineHardNegativesTask<T>& task, int64_t begin, int64_t end) {
    Miner<T> miner(task.num_anchors);
    Pacer pacer;
    for (int64_t image = begin; image < end && !pacer.cancelled(task.num_anchors); ++image) {
        const int64_t first = image * task.num_anchors;
        miner.run(task.loss + first, task.positive + first, task.neg_pos_ratio, task.min_negatives, task.out + first);
    }
}

}  // namespace fastssd::FASTSSD_ISA
