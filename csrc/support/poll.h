// How a long serial loop notices that nobody wants its result any more.
#pragma once

#include <cstdint>

namespace fastssd {

// True once the work that this thread takes part in is cancelled. Costs about 25 ns; parallel.cpp defines it.
bool poll();

namespace FASTSSD_ISA {

// Calls poll() once in about 30 us, counting work in units of about a nanosecond.
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
