// fastssd._C: a table of contents. The functions are in bindings/, one file for each operator family; only they know
// Python. A binding checks the arrays, says what the work costs and starts the kernel. Its name, arguments and shapes
// are those of fastssd/backends/reference. direct_NAME in bindings/direct/ is a short way: the whole public operator
// NAME.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "bindings/anchors.h"
#include "bindings/boxes.h"
#include "bindings/coding.h"
#include "bindings/direct/coding.h"
#include "bindings/direct/iou.h"
#include "bindings/direct/matching.h"
#include "bindings/direct/nms.h"
#include "bindings/iou.h"
#include "bindings/launch.h"
#include "bindings/matching.h"
#include "bindings/mining.h"
#include "bindings/multibox.h"
#include "bindings/nms.h"
#include "bindings/postprocess.h"
#include "dispatch.h"

namespace fastssd {
namespace {

py::tuple names(KernelTables tables) {
    py::list list;
    for (; *tables; ++tables) list.append((*tables)->isa);
    return py::tuple(list);
}

void set_thread_count(py::object callable) { thread_count = callable.release().ptr(); }

// What Python states too: tests/test_dispatch.py compares them.
py::dict shared_constants() {
    py::dict constants;
#define FASTSSD_TEXT(name) #name,
    constants["BOX_FORMATS"] = std::vector<const char*>{FASTSSD_BOX_FORMATS(FASTSSD_TEXT)};
    constants["FORCE_MATCH"] = std::vector<const char*>{FASTSSD_FORCE_MATCH(FASTSSD_TEXT)};
    constants["ACTIVATIONS"] = std::vector<const char*>{FASTSSD_ACTIVATIONS(FASTSSD_TEXT)};
    constants["SOFT_NMS_METHODS"] = std::vector<const char*>{FASTSSD_SOFT_NMS_METHODS(FASTSSD_TEXT)};
#undef FASTSSD_TEXT
    constants["shared block bytes"] = SharedBlock::kMostBytes;
    constants["threads"] = kMostThreads;
    return constants;
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    try {
        kernels = &choose_table(std::getenv("FASTSSD_ISA"));
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }
    numpy = &NumpyApi::get();
    set_interrupt_check(interrupted);

    m.doc() = "The compiled kernels of fastssd. Private: use fastssd.ops.";
    m.attr("shared_constants") = shared_constants();
    m.def("isa", [] { return kernels->isa; }, "The instruction set in use.");
    m.def("available_isas", [] { return names(available_tables()); }, "Those that can run here, best first.");
    m.def("compiled_isas", [] { return names(compiled_tables()); }, "Those that this build holds, best first.");
    m.def("set_thread_count", set_thread_count, "Set the callable that says how many threads to use.");

    register_boxes(m);
    register_anchors(m);
    register_iou(m);
    register_matching(m);
    register_mining(m);
    register_multibox(m);
    register_coding(m);
    register_nms(m);
    register_postprocess(m);

    register_direct_iou(m);
    register_direct_matching(m);
    register_direct_coding(m);
    register_direct_nms(m);
}

}  // namespace fastssd
