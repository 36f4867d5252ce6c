// The kernels of one instruction set. CMakeLists.txt compiles this file once for each, with FASTSSD_ISA as its name.
//
// Everything that the headers define is in the namespace of that name. Of anything else (say, an inline template of the
// standard library) the linker keeps one copy, maybe the one with the widest instructions, which crashes on other
// processors: tests/test_dispatch.py looks for such symbols.

#include "dispatch.h"
#include "ops/anchors.h"
#include "ops/boxes.h"
#include "ops/coding.h"
#include "ops/iou.h"
#include "ops/matching.h"
#include "ops/mining.h"
#include "ops/multibox.h"
#include "ops/nms.h"
#include "ops/postprocess.h"

#define FASTSSD_STRING_OF(name) #name
#define FASTSSD_STRING(name) FASTSSD_STRING_OF(name)

namespace fastssd::FASTSSD_ISA {

template <typename T>
constexpr Kernels<T> kernels_of() {
    Kernels<T> table{};
#define FASTSSD_FILL(name, Task) table.name = name<T>;
    FASTSSD_KERNELS(FASTSSD_FILL, FASTSSD_FILL)
#undef FASTSSD_FILL
    return table;
}

extern const KernelTable kernels;
const KernelTable kernels = {FASTSSD_STRING(FASTSSD_ISA), kernels_of<float>(), kernels_of<double>()};

}  // namespace fastssd::FASTSSD_ISA
