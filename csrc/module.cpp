// fastssd._C: a table of contents. The functions are in bindings/, a file an operator family; only these know Python.
// One looks at the arrays, says what the work costs and starts the kernel. The names, arguments and shapes are those of
// the Backend protocol in fastssd/backends/__init__.py. direct_NAME is a whole operator in one call, or None where the
// face must look first.

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <stdexcept>

#include "bindings/anchors.h"
#include "bindings/boxes.h"
#include "bindings/coding.h"
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

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    try {
        kernels = &choose_table(std::getenv("FASTSSD_ISA"));
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }
    numpy = &NumpyApi::get();
    set_interrupt_check(interrupted);
    keep_plans_usable_in_children();

    m.doc() = "The compiled kernels of fastssd. Private: use fastssd.ops.";
    m.def("isa", [] { return kernels->isa; }, "The instruction set in use.");
    m.def("available_isas", [] { return names(available_tables()); }, "Those that can run here, best first.");
    m.def("compiled_isas", [] { return names(compiled_tables()); }, "Those that this build holds, best first.");
    m.def("set_thread_count", set_thread_count, "Set the callable that says how many threads to use.");

    m.def("box_area", box_area);
    m.def("box_convert", box_convert);
    m.def("clip_boxes_to_image", clip_boxes_to_image);
    m.def("remove_small_boxes", remove_small_boxes);
    m.def("grid_anchors", grid_anchors);
    m.def("box_iou", pairwise<BoxIou>);
    m.def("generalized_box_iou", pairwise<GeneralizedBoxIou>);
    m.def("distance_box_iou", pairwise<DistanceBoxIou>);
    m.def("complete_box_iou", pairwise<CompleteBoxIou>);
    m.def("paired_box_iou", paired_box_iou);
    m.def("match_anchors", match_anchors);
    m.def("assign_targets", assign_targets);
    m.def("mine_hard_negatives", mine_hard_negatives);
    m.def("multibox_cross_entropy", multibox_cross_entropy);
    m.def("multibox_cross_entropy_gradient", multibox_cross_entropy_gradient);
    m.def("encode_boxes", encode_boxes);
    m.def("decode_boxes", decode_boxes);
    m.def("nms", nms);
    m.def("batched_nms", batched_nms);
    m.def("soft_nms", soft_nms);
    m.def("postprocess_detections", postprocess_detections);

    m.def("direct_box_iou", direct_pairwise<BoxIou>);
    m.def("direct_generalized_box_iou", direct_pairwise<GeneralizedBoxIou>);
    m.def("direct_distance_box_iou", direct_pairwise<DistanceBoxIou>);
    m.def("direct_complete_box_iou", direct_pairwise<CompleteBoxIou>);
    m.def("direct_paired_box_iou", direct_paired_box_iou);
    m.def("direct_match_anchors", direct_match_anchors);
    m.def("direct_assign_targets", direct_assign_targets);
    m.def("direct_encode_boxes", direct_encode_boxes);
    m.def("direct_decode_boxes", direct_decode_boxes);
    m.def("direct_nms", direct_nms);
    m.def("direct_batched_nms", direct_batched_nms);
}

}  // namespace fastssd
