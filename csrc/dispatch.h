// The table of kernels: one for each instruction set, filled by kernels.cpp, chosen once at import.
//
// A kernel knows neither Python nor threads. It trusts its pointers, works on a part [begin, end) of its rows, and
// writes only the outputs of those rows, so that any split into parts gives the same result. It may stop early where
// poll() says so (support/poll.h); its outputs are then dropped.
#pragma once

#include <cstdint>

namespace fastssd {

// The codes of fastssd/backends/__init__.py.
enum class BoxFormat : int { xyxy = 0, xywh = 1, cxcywh = 2 };
enum class ForceMatch : int { none = 0, bipartite = 1, best = 2, low_quality = 3 };
enum class Activation : int { none = 0, softmax = 1, sigmoid = 2 };
enum class SoftNms : int { linear = 0, gaussian = 1 };

struct Variances {
    double center;
    double size;
};

template <typename T>
struct MatchTask {
    const void* plan;        // what plan_anchors made of the anchors
    int64_t num_anchors;     // A
    const T* gt_boxes;       // [S, 4]
    const int64_t* offsets;  // [B + 1]
    double iou_threshold;
    double background_threshold;
    ForceMatch force_match;
    int64_t* gt_idx;  // [B, A]
    T* iou;           // [B, A]; null where nobody asks for it
};

template <typename T>
struct AssignTask {
    MatchTask<T> match;
    const T* anchors;          // [A, 4]
    const int64_t* gt_labels;  // [S]
    Variances variances;
    int64_t* labels;  // [B, A]
    T* deltas;        // [B, A, 4]
};

template <typename T>
struct MultiboxTask {
    const T* logits;        // [B, A, C]
    const int64_t* labels;  // [B, A], in [-1, C)
    int64_t num_anchors;
    int64_t num_classes;
    double neg_pos_ratio;
    int64_t min_negatives;
    double* losses;  // [B]
    bool* selected;  // [B, A]
};

template <typename T>
struct PostprocessTask {
    const T* logits;   // [B, A, C]
    const T* deltas;   // [B, A, 4]
    const T* anchors;  // [A, 4]
    int64_t num_anchors;
    int64_t num_classes;
    int64_t max_detections;  // K
    double score_threshold;
    double iou_threshold;
    int64_t topk;
    double clip_height;
    double clip_width;
    Activation activation;
    Variances variances;
    T* boxes;             // [B, K, 4]
    T* scores;            // [B, K]
    int64_t* labels;      // [B, K]
    int64_t* anchor_idx;  // [B, K]
    int64_t* counts;      // [B]
};

// The kernels for one dtype. Shapes as in the Backend protocol; rows are numbered through the whole batch.
template <typename T>
struct Kernels {
    using Pairwise = void(const T* boxes1, const T* boxes2, int64_t n, int64_t m, int64_t begin, int64_t end, T* out);
    using Coder = void(const T* boxes_or_deltas, const T* anchors, int64_t num_anchors, Variances variances,
                       int64_t begin, int64_t end, T* out);

    void (*box_area)(const T* boxes, int64_t begin, int64_t end, T* out);
    void (*box_convert)(const T* boxes, BoxFormat in_fmt, BoxFormat out_fmt, int64_t begin, int64_t end, T* out);
    void (*clip_boxes_to_image)(const T* boxes, T height, T width, int64_t begin, int64_t end, T* out);
    int64_t (*remove_small_boxes)(const T* boxes, int64_t n, double min_size, int64_t* keep);

    void (*grid_anchors)(int64_t height, int64_t width, const double* shapes, int64_t num_shapes, const double* scale,
                         bool clip, int64_t begin, int64_t end, T* out);  // rows are rows of the grid

    Pairwise* box_iou;  // rows are those of boxes1: [B * N]
    Pairwise* generalized_box_iou;
    Pairwise* distance_box_iou;
    Pairwise* complete_box_iou;
    void (*paired_box_iou)(const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* out);

    int64_t (*anchor_plan_size)(int64_t num_anchors);  // bytes of a plan
    void (*plan_anchors)(const T* anchors, int64_t num_anchors, void* plan);
    void (*match_anchors)(const MatchTask<T>& task, int64_t begin, int64_t end);    // rows are images
    void (*assign_targets)(const AssignTask<T>& task, int64_t begin, int64_t end);  // rows are images

    void (*mine_hard_negatives)(const T* loss, const bool* positive, int64_t num_anchors, double neg_pos_ratio,
                                int64_t min_negatives, int64_t begin, int64_t end, bool* out);  // rows are images

    void (*multibox_cross_entropy)(const MultiboxTask<T>& task, int64_t begin, int64_t end);  // rows are images
    void (*multibox_cross_entropy_gradient)(const T* logits, const int64_t* labels, const bool* selected, T scale,
                                            int64_t num_classes, int64_t begin, int64_t end,
                                            T* out);  // rows are anchors: [B * A]

    Coder* encode_boxes;  // rows are boxes: [B * A]
    Coder* decode_boxes;

    int64_t (*nms)(const T* boxes, const T* scores, int64_t n, double iou_threshold, int64_t* keep);
    int64_t (*batched_nms)(const T* boxes, const T* scores, const int64_t* idxs, int64_t n, double iou_threshold,
                           int64_t* keep);
    int64_t (*soft_nms)(const T* boxes, const T* scores, int64_t n, SoftNms method, double iou_threshold, double sigma,
                        double score_threshold, int64_t* keep, T* kept_scores);

    void (*postprocess_detections)(const PostprocessTask<T>& task, int64_t begin, int64_t end);  // rows are images
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

// The table called `isa`, or the best available one where it is null or empty.
// Throws std::runtime_error where no such table was compiled or this processor cannot run it.
const KernelTable& choose_table(const char* isa);

}  // namespace fastssd
