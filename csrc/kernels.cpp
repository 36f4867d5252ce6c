// The kernels of one instruction set. CMakeLists.txt compiles this file once for each, with FASTSSD_ISA as its name.
//
// Everything that the headers define lies in the namespace of that name. What would not (an inline template of the
// standard library) could be taken by the linker from the object with the widest instructions and crash elsewhere:
// tests/test_dispatch.py looks for such symbols.

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

// In the order of Kernels in dispatch.h.
template <typename T>
constexpr Kernels<T> kernels_of() {
    return {
        box_area<T>,
        box_convert<T>,
        clip_boxes_to_image<T>,
        remove_small_boxes<T>,
        grid_anchors<T>,
        pairwise<PlainIou, T>,
        pairwise<GeneralizedIou, T>,
        pairwise<DistanceIou, T>,
        pairwise<CompleteIou, T>,
        paired_box_iou<T>,
        anchor_plan_size<T>,
        plan_anchors<T>,
        match_anchors<T>,
        assign_targets<T>,
        mine_hard_negatives<T>,
        multibox_cross_entropy<T>,
        multibox_cross_entropy_gradient<T>,
        encode_boxes<T>,
        decode_boxes<T>,
        nms<T>,
        batched_nms<T>,
        soft_nms<T>,
        postprocess_detections<T>,
    };
}

extern const KernelTable kernels;
const KernelTable kernels = {FASTSSD_STRING(FASTSSD_ISA), kernels_of<float>(), kernels_of<double>()};

}  // namespace fastssd::FASTSSD_ISA
