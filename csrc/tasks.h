// What each operator has to do: the one list of its arguments below the bindings, and the list of all kernels.
//
// A task holds the arguments of fastssd/backends/reference/<family>.py in the same order and with the same shapes, and
// after the inputs the lengths that the kernel needs. A kernel works on the rows [begin, end) of its task; each task
// says what its rows are. Where a task has no rows, the kernel does all of it and returns how many it kept.
#pragma once

#include <cstdint>

namespace fastssd {

// The codes of fastssd/backends/codes.py, which count from 0. tests/test_dispatch.py compares names and order.
#define FASTSSD_BOX_FORMATS(CODE) CODE(xyxy) CODE(xywh) CODE(cxcywh)
#define FASTSSD_FORCE_MATCH(CODE) CODE(none) CODE(bipartite) CODE(best) CODE(low_quality)
#define FASTSSD_ACTIVATIONS(CODE) CODE(none) CODE(softmax) CODE(sigmoid)
#define FASTSSD_SOFT_NMS_METHODS(CODE) CODE(linear) CODE(gaussian)

#define FASTSSD_ENUMERATOR(name) name,
enum class BoxFormat : int { FASTSSD_BOX_FORMATS(FASTSSD_ENUMERATOR) };
enum class ForceMatch : int { FASTSSD_FORCE_MATCH(FASTSSD_ENUMERATOR) };
enum class Activation : int { FASTSSD_ACTIVATIONS(FASTSSD_ENUMERATOR) };
enum class SoftNmsMethod : int { FASTSSD_SOFT_NMS_METHODS(FASTSSD_ENUMERATOR) };
#undef FASTSSD_ENUMERATOR

struct Variances {
    double center;
    double size;
};

// --- boxes

template <typename T>
struct BoxAreaTask {  // rows are boxes
    const T* boxes;   // [N, 4]
    T* out;           // [N]
};

template <typename T>
struct BoxConvertTask {  // rows are boxes
    const T* boxes;      // [N, 4]
    BoxFormat in_fmt;
    BoxFormat out_fmt;
    T* out;  // [N, 4]
};

template <typename T>
struct ClipBoxesToImageTask {  // rows are boxes
    const T* boxes;            // [N, 4]
    double height;
    double width;
    T* out;  // [N, 4]
};

template <typename T>
struct RemoveSmallBoxesTask {
    const T* boxes;  // [N, 4]
    int64_t n;
    double min_size;
    int64_t* keep;  // [N]
};

// --- anchors

template <typename T>
struct GridAnchorsTask {  // rows are those of the grid
    int64_t height;
    int64_t width;
    const double* shapes;  // [K, 2]
    int64_t num_shapes;    // K
    const double* scale;   // [2]
    bool clip;
    T* out;  // [height * width * K, 4]
};

// --- iou

template <typename T>
struct PairwiseTask {  // rows are those of boxes1: [B * N]
    const T* boxes1;   // [B, N, 4]
    const T* boxes2;   // [B, M, 4]
    int64_t n;
    int64_t m;
    T* out;  // [B, N, M]
};

template <typename T>
struct PairedTask {   // rows are pairs
    const T* boxes1;  // [N, 4]
    const T* boxes2;  // [N, 4]
    T* out;           // [N]
};

// --- matching

// Not an operator: arranges the anchors for match_anchors and assign_targets. Returns the size of a plan in bytes, and
// does nothing else where `plan` is null.
template <typename T>
struct PlanAnchorsTask {
    const T* anchors;     // [A, 4]
    int64_t num_anchors;  // A
    void* plan;           // aligned for any vector
};

template <typename T>
struct MatchAnchorsTask {    // rows are images
    const void* plan;        // of the anchors [A, 4]
    int64_t num_anchors;     // A
    const T* gt_boxes;       // [S, 4]
    const int64_t* offsets;  // [B + 1]
    double iou_threshold;
    double background_threshold;
    ForceMatch force_match;
    int64_t* gt_idx;  // [B, A]
    T* iou;           // [B, A]; null within AssignTargetsTask
};

template <typename T>
struct AssignTargetsTask {  // rows are images
    MatchAnchorsTask<T> match;
    const T* anchors;          // [A, 4]
    const int64_t* gt_labels;  // [S]
    Variances variances;
    int64_t* labels;  // [B, A]
    T* deltas;        // [B, A, 4]
};

// --- mining

template <typename T>
struct MineHardNegativesTask {  // rows are images
    const T* loss;              // [B, A]
    const bool* positive;       // [B, A]
    int64_t num_anchors;        // A
    double neg_pos_ratio;
    int64_t min_negatives;
    bool* out;  // [B, A]
};

// --- multibox

template <typename T>
struct MultiboxCrossEntropyTask {  // rows are images
    const T* logits;               // [B, A, C]
    const int64_t* labels;         // [B, A], in [-1, C)
    int64_t num_anchors;           // A
    int64_t num_classes;           // C
    double neg_pos_ratio;
    int64_t min_negatives;
    double* losses;  // [B]
    bool* selected;  // [B, A]
};

template <typename T>
struct MultiboxCrossEntropyGradientTask {  // rows are anchors: [B * A]
    const T* logits;                       // [B, A, C]
    const int64_t* labels;                 // [B, A], in [-1, C)
    const bool* selected;                  // [B, A]
    int64_t num_classes;                   // C
    double scale;
    T* out;  // [B, A, C]
};

// --- coding

template <typename T>
struct CodingTask {            // rows are boxes: [B * A]
    const T* boxes_or_deltas;  // [B, A, 4]
    const T* anchors;          // [A, 4]
    int64_t num_anchors;       // A
    Variances variances;
    T* out;  // [B, A, 4]
};

// --- nms

template <typename T>
struct NmsTask {
    const T* boxes;   // [N, 4]
    const T* scores;  // [N]
    int64_t n;
    double iou_threshold;
    int64_t* keep;  // [N]
};

template <typename T>
struct BatchedNmsTask {
    const T* boxes;       // [N, 4]
    const T* scores;      // [N]
    const int64_t* idxs;  // [N]
    int64_t n;
    double iou_threshold;
    int64_t* keep;  // [N]
};

template <typename T>
struct SoftNmsTask {
    const T* boxes;   // [N, 4]
    const T* scores;  // [N]
    int64_t n;
    SoftNmsMethod method;
    double iou_threshold;
    double sigma;
    double score_threshold;
    int64_t* keep;   // [N]
    T* kept_scores;  // [N]
};

template <typename T>
struct MatrixNmsTask {
    const T* boxes;       // [N, 4]
    const T* scores;      // [N]
    const int64_t* idxs;  // [N]
    int64_t n;
    SoftNmsMethod method;
    double sigma;
    double score_threshold;
    int64_t* keep;   // [N]
    T* kept_scores;  // [N]
};

// --- postprocess

template <typename T>
struct PostprocessDetectionsTask {  // rows are images
    const T* logits;                // [B, A, C]
    const T* deltas;                // [B, A, 4]
    const T* anchors;               // [A, 4]
    int64_t num_anchors;            // A
    int64_t num_classes;            // C
    int64_t max_detections;         // K
    double score_threshold;
    double iou_threshold;
    int64_t topk;
    double clip_height;  // infinite where boxes are not clipped
    double clip_width;
    Activation activation;
    Variances variances;
    T* boxes;             // [B, K, 4]
    T* scores;            // [B, K]
    int64_t* labels;      // [B, K]
    int64_t* anchor_idx;  // [B, K]
    int64_t* counts;      // [B]
};

// ROWS(kernel, task) or WHOLE(kernel, task), where a task has no rows. dispatch.h declares the table from this list and
// kernels.cpp fills it by name, so no kernel can get the place of another.
#define FASTSSD_KERNELS(ROWS, WHOLE)                                        \
    ROWS(box_area, BoxAreaTask)                                             \
    ROWS(box_convert, BoxConvertTask)                                       \
    ROWS(clip_boxes_to_image, ClipBoxesToImageTask)                         \
    WHOLE(remove_small_boxes, RemoveSmallBoxesTask)                         \
    ROWS(grid_anchors, GridAnchorsTask)                                     \
    ROWS(box_iou, PairwiseTask)                                             \
    ROWS(generalized_box_iou, PairwiseTask)                                 \
    ROWS(distance_box_iou, PairwiseTask)                                    \
    ROWS(complete_box_iou, PairwiseTask)                                    \
    ROWS(paired_box_iou, PairedTask)                                        \
    WHOLE(plan_anchors, PlanAnchorsTask)                                    \
    ROWS(match_anchors, MatchAnchorsTask)                                   \
    ROWS(assign_targets, AssignTargetsTask)                                 \
    ROWS(mine_hard_negatives, MineHardNegativesTask)                        \
    ROWS(multibox_cross_entropy, MultiboxCrossEntropyTask)                  \
    ROWS(multibox_cross_entropy_gradient, MultiboxCrossEntropyGradientTask) \
    ROWS(encode_boxes, CodingTask)                                          \
    ROWS(decode_boxes, CodingTask)                                          \
    WHOLE(nms, NmsTask)                                                     \
    WHOLE(batched_nms, BatchedNmsTask)                                      \
    WHOLE(soft_nms, SoftNmsTask)                                            \
    WHOLE(matrix_nms, MatrixNmsTask)                                        \
    ROWS(postprocess_detections, PostprocessDetectionsTask)

}  // namespace fastssd
