#include "dispatch.h"

#include <stdexcept>
#include <string>

#if defined(_MSC_VER) && defined(FASTSSD_HAS_AVX2)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace fastssd {

namespace baseline {
extern const KernelTable kernels;
}
#ifdef FASTSSD_HAS_AVX2
namespace avx2 {
extern const KernelTable kernels;
}
#endif
#ifdef FASTSSD_HAS_AVX512
namespace avx512 {
extern const KernelTable kernels;
}
#endif

namespace {

const KernelTable* const compiled[] = {
#ifdef FASTSSD_HAS_AVX512
    &avx512::kernels,
#endif
#ifdef FASTSSD_HAS_AVX2
    &avx2::kernels,
#endif
    &baseline::kernels,
    nullptr,
};
constexpr int num_compiled = sizeof(compiled) / sizeof(compiled[0]) - 1;

// Whether the processor and the operating system (which must save the registers) can run what each build was compiled
// with: the flags in CMakeLists.txt.
#ifdef FASTSSD_HAS_AVX2
#ifdef _MSC_VER
struct Cpu {
    bool avx2 = false, avx512 = false;

    Cpu() {
        int r[4];
        __cpuid(r, 0);
        const int highest = r[0];
        __cpuid(r, 1);
        const bool xsave = (r[2] >> 27) & 1, popcnt = (r[2] >> 23) & 1;
        if (highest < 7 || !xsave || !popcnt) return;
        const unsigned long long saved = _xgetbv(0);
        __cpuidex(r, 7, 0);
        const auto has = [&](int bit) { return ((r[1] >> bit) & 1) != 0; };
        avx2 = (saved & 0x6) == 0x6 && has(3) && has(5) && has(8);                            // BMI1, AVX2, BMI2
        avx512 = avx2 && (saved & 0xe6) == 0xe6 && has(16) && has(17) && has(30) && has(31);  // F, DQ, BW, VL
    }
};
const Cpu cpu;
bool runs_avx2() { return cpu.avx2; }
bool runs_avx512() { return cpu.avx512; }
#else
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt");
}
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#endif

bool runs(const KernelTable& table) {
#ifdef FASTSSD_HAS_AVX512
    if (&table == &avx512::kernels) return runs_avx512();
#endif
#ifdef FASTSSD_HAS_AVX2
    if (&table == &avx2::kernels) return runs_avx2();
#endif
    return &table == &baseline::kernels;
}

std::string names(KernelTables tables) {
    std::string text;
    for (; *tables; ++tables) text += (text.empty() ? "" : ", ") + std::string((*tables)->isa);
    return text;
}

}  // namespace

KernelTables compiled_tables() { return compiled; }

KernelTables available_tables() {
    static const struct Available {
        const KernelTable* tables[num_compiled + 1] = {};

        Available() {
            int count = 0;
            for (int i = 0; i < num_compiled; ++i) {
                if (runs(*compiled[i])) tables[count++] = compiled[i];
            }
        }
    } available;
    return available.tables;
}

const KernelTable& choose_table(const char* isa) {
    if (isa == nullptr || *isa == '\0') return **available_tables();
    const std::string wanted = isa;
    for (KernelTables t = available_tables(); *t; ++t) {
        if (wanted == (*t)->isa) return **t;
    }
    for (KernelTables t = compiled_tables(); *t; ++t) {
        if (wanted == (*t)->isa) {
            throw std::runtime_error("FASTSSD_ISA: this processor cannot run '" + wanted +
                                     "'; expected one of: " + names(available_tables()));
        }
    }
    throw std::runtime_error("FASTSSD_ISA: no kernels were compiled for '" + wanted +
                             "'; expected one of: " + names(available_tables()));
}

}  // namespace fastssd
