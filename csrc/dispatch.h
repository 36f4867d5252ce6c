// The table of kernels: one for each instruction set, filled by kernels.cpp, chosen once at import.
//
// A kernel knows neither Python nor threads. It trusts its pointers and writes only the outputs of its rows, so any
// split of the rows into parts gives the same result. It may stop early where poll() says so (support/poll.h); its
// outputs are then dropped.
#pragma once

#include <cstdint>

#include "tasks.h"

namespace fastssd {

// The kernels for one dtype, each under the name of its operator.
template <typename T>
struct Kernels {
#define FASTSSD_DECLARE_ROWS(name, Task) void (*name)(const Task<T>& task, int64_t begin, int64_t end);
#define FASTSSD_DECLARE_WHOLE(name, Task) int64_t (*name)(const Task<T>& task);
    FASTSSD_KERNELS(FASTSSD_DECLARE_ROWS, FASTSSD_DECLARE_WHOLE)
#undef FASTSSD_DECLARE_ROWS
#undef FASTSSD_DECLARE_WHOLE
};

struct KernelTable {
    const char* isa;
    Kernels<float> float32;
    Kernels<double> float64;

    const Kernels<float>& of(float) const { return float32; }
    const Kernels<double>& of(double) const { return float64; }
};

// A list that ends with a null pointer, best instruction set first.
using KernelTables = const KernelTable* const*;

KernelTables compiled_tables();   // what this build holds
KernelTables available_tables();  // what of it this processor and operating system can run

// The table called `isa`, or the best available one where `isa` is null or empty.
// Throws std::runtime_error where no such table was compiled or this processor cannot run it.
const KernelTable& choose_table(const char* isa);

}  // namespace fastssd
