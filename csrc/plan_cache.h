// Anchors are the same in call after call, and to arrange them (geometry/anchor_index.h) costs more than to match: so
// plans are kept. A plan is found by the content of the anchors, which are all compared with a copy. So the address of
// the array does not matter, and an array that was written to is another set of anchors. Knows no Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace fastssd {

// What is true of all boxes [N, 4]; each includes the one before: nothing; finite; of positive width and height.
enum class BoxQuality { any, finite, positive };

template <typename T>
BoxQuality quality_of(const T* boxes, int64_t n) {
    bool finite = true, positive = true;
    for (int64_t i = 0; i < n; ++i) {
        const T* const box = boxes + 4 * i;
        finite &= ((box[0] - box[0]) + (box[1] - box[1])) + ((box[2] - box[2]) + (box[3] - box[3])) == T(0);
        positive &= (box[2] > box[0]) & (box[3] > box[1]);
    }
    return !finite ? BoxQuality::any : positive ? BoxQuality::positive : BoxQuality::finite;
}

// A hash of the number of boxes [N, 4] and of a sample of them: only sets with equal marks need a comparison.
template <typename T>
uint64_t mark_of(const T* boxes, int64_t n) {
    constexpr int64_t kSome = 32;
    uint64_t mark = static_cast<uint64_t>(n);
    for (int64_t i = 0; i < n; i += std::max<int64_t>(1, n / kSome)) {
        uint64_t bits[4 * sizeof(T) / sizeof(uint64_t)];
        std::memcpy(bits, boxes + 4 * i, sizeof(bits));
        for (const uint64_t word : bits) {
            mark = (mark ^ word) * 0x9e3779b97f4a7c15u;
            mark ^= mark >> 32;
        }
    }
    return mark;
}

// A plan and the copy of the anchors [A, 4] that it was made from. Never changed once it is made.
template <typename T>
class AnchorPlan {
  public:
    // Another thread may write to the caller's memory: it is only copied, and all else is computed from the copy.
    AnchorPlan(uint64_t mark, const T* anchors, int64_t num_anchors, int64_t plan_bytes)
        : mark_(mark),
          num_anchors_(num_anchors),
          plan_bytes_(plan_bytes),
          anchors_(new T[static_cast<std::size_t>(4 * num_anchors)]),
          plan_(allocate(plan_bytes)) {
        if (num_anchors > 0) std::memcpy(anchors_.get(), anchors, anchor_bytes());
        quality_ = quality_of(anchors_.get(), num_anchors);
    }

    void* data() const { return plan_.get(); }
    const T* anchors() const { return anchors_.get(); }
    uint64_t mark() const { return mark_; }
    BoxQuality quality() const { return quality_; }
    int64_t bytes() const { return plan_bytes_ + static_cast<int64_t>(anchor_bytes() + sizeof(AnchorPlan)); }

    bool is_of(const T* anchors, int64_t num_anchors) const {
        return num_anchors == num_anchors_ &&
               (num_anchors == 0 || std::memcmp(anchors_.get(), anchors, anchor_bytes()) == 0);
    }

  private:
    static constexpr std::align_val_t kAlign{64};  // a block of the plan starts on a cache line
    struct Free {
        void operator()(void* memory) const { ::operator delete(memory, kAlign); }
    };

    static void* allocate(int64_t bytes) { return ::operator new(static_cast<std::size_t>(bytes), kAlign); }
    std::size_t anchor_bytes() const { return static_cast<std::size_t>(4 * num_anchors_) * sizeof(T); }

    uint64_t mark_;  // of the caller's memory, before it was copied
    int64_t num_anchors_, plan_bytes_;
    std::unique_ptr<T[]> anchors_;
    std::unique_ptr<void, Free> plan_;
    BoxQuality quality_;
};

// Plans, up to a number of them and of bytes. For any number of threads: the mutex is held while the list is read or
// changed, never while anchors are compared, a plan is made or freed, or Python code runs.
template <typename T>
class PlanCache {
  public:
    using Entry = std::shared_ptr<const AnchorPlan<T>>;

    static constexpr std::size_t kMost = 64;
    static constexpr int64_t kMostBytes = int64_t(1) << 27;  // 7 sets of 2^18 float32 anchors

    // The plans of anchors with this mark: none or one, rarely more.
    std::vector<Entry> alike(uint64_t mark) {
        std::vector<Entry> found;
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const Kept& kept : kept_) {
            if (kept.mark == mark) found.push_back(kept.plan);
        }
        return found;
    }

    // Where there is no room, random plans leave. If the least recently used plan left, then of sets that are used in
    // turn and do not all fit, each would leave just before it is needed.
    void add(const Entry& plan) {
        if (plan->bytes() > kMostBytes) return;
        std::vector<Kept> leaving;  // freed after the mutex is released
        const std::lock_guard<std::mutex> lock(mutex_);
        while (kept_.size() == kMost || bytes_ + plan->bytes() > kMostBytes) {
            random_ = random_ * 6364136223846793005u + 1442695040888963407u;
            std::swap(kept_[static_cast<std::size_t>(random_ >> 33) % kept_.size()], kept_.back());
            leaving.push_back(kept_.back());
            kept_.pop_back();
            bytes_ -= leaving.back().plan->bytes();
        }
        kept_.push_back({plan->mark(), plan});
        bytes_ += plan->bytes();
    }

    // Around a fork, so that the child does not start with a mutex that is locked by a thread which it does not have.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    struct Kept {
        uint64_t mark;
        Entry plan;
    };

    std::mutex mutex_;
    // Under the mutex:
    std::vector<Kept> kept_;
    int64_t bytes_ = 0;
    uint64_t random_ = 1;
};

}  // namespace fastssd
