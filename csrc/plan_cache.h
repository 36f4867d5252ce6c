// Anchors are the same in call after call, and arranging them (support/anchor_index.h) costs more than matching does:
// the plans of the last few are kept. A plan is found by the content of the anchors, compared whole with a copy of
// them, so it does not matter who holds the array, whether it was written to since, or what lies at its address now.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

namespace fastssd {

// How far boxes [N, 4] are in order, each including the one before.
enum class Boxes { odd, finite, solid };  // anything; all finite; all of positive width and height too

template <typename T>
Boxes look_at(const T* boxes, int64_t n) {
    bool finite = true, solid = true;
    for (int64_t i = 0; i < n; ++i) {
        const T* const box = boxes + 4 * i;
        finite &= ((box[0] - box[0]) + (box[1] - box[1])) + ((box[2] - box[2]) + (box[3] - box[3])) == T(0);
        solid &= (box[2] > box[0]) & (box[3] > box[1]);
    }
    return !finite ? Boxes::odd : solid ? Boxes::solid : Boxes::finite;
}

// A plan and a copy of the anchors [A, 4] that it was made of. Nobody changes it once it is made.
template <typename T>
class AnchorPlan {
  public:
    AnchorPlan(const T* anchors, int64_t num_anchors, int64_t plan_bytes)
        : num_anchors_(num_anchors),
          anchors_(new T[static_cast<std::size_t>(4 * num_anchors)]),
          looks_(look_at(anchors, num_anchors)),
          plan_(allocate(plan_bytes)) {
        if (num_anchors > 0) std::memcpy(anchors_.get(), anchors, anchor_bytes());
    }

    void* data() const { return plan_.get(); }
    int64_t num_anchors() const { return num_anchors_; }
    Boxes anchors() const { return looks_; }

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

    int64_t num_anchors_;
    std::unique_ptr<T[]> anchors_;
    Boxes looks_;
    std::unique_ptr<void, Free> plan_;
};

// The plans used last, the latest first. Copied and changed with the GIL held; looking into a copy needs none.
template <typename T>
class PlanCache {
  public:
    using Entry = std::shared_ptr<const AnchorPlan<T>>;

    Entry find(const T* anchors, int64_t num_anchors) const {
        for (const Entry& entry : entries_) {
            if (entry != nullptr && entry->is_of(anchors, num_anchors)) return entry;
        }
        return nullptr;
    }

    // Puts `entry` in front; a new one drives out the one that was not used for longest.
    void use(const Entry& entry) {
        if (entry == entries_[0] || entry->num_anchors() > kMostAnchors) return;
        Entry last = entry;
        for (Entry& place : entries_) {
            std::swap(last, place);
            if (last == entry) return;
        }
    }

  private:
    static constexpr int64_t kMostAnchors = 1 << 18;  // larger plans would hold too much memory: they are made anew
    std::array<Entry, 8> entries_;
};

}  // namespace fastssd
