// How a long loop notices that its call was cancelled.
#pragma once

#include <cstdint>

namespace fastssd {

// True once the call that this thread works for is cancelled. Costs about 25 ns; parallel.cpp defines it.
bool poll();

namespace FASTSSD_ISA {

// Calls poll() about every 30 us; `work` is counted in nanoseconds or so.
class Pacer {
  public:
    bool cancelled(int64_t work) {
        left_ -= work;
        if (left_ > 0) return false;
        left_ = kBetweenPolls;
        return poll();
    }

  private:
    static constexpr int64_t kBetweenPolls = 1 << 15;
    int64_t left_ = kBetweenPolls;
};

}  // namespace FASTSSD_ISA
}  // namespace fastssd
