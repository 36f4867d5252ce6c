// The thread pool, the plan cache and the kernels, used by several threads at once, as in a free-threaded Python.
// `make sanitize` builds this with ThreadSanitizer, which reports races; wrong results are reported here. No Python.

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "plan_cache.h"

namespace fastssd {

bool poll();

namespace {

constexpr int kCallers = 4;     // threads of the program
constexpr int kPerCall = 3;     // threads that each asks for
constexpr double kWorth = 1e9;  // ns an item: always worth several threads

void check(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "threads: wrong: %s\n", what);
    std::abort();
}

template <typename Fn>
void from_several_threads(const Fn& fn) {
    std::vector<std::thread> threads;
    for (int caller = 0; caller < kCallers; ++caller) threads.emplace_back([&fn, caller] { fn(caller); });
    for (std::thread& thread : threads) thread.join();
}

// --- the pool

void every_item_once() {
    from_several_threads([](int caller) {
        for (int64_t n = 1; n < 200; n += 1 + caller) {
            std::vector<int> times(static_cast<std::size_t>(n));  // not atomic: two threads on one item are a race
            const Outcome outcome = parallel_for(n, kWorth, kPerCall, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
            });
            check(outcome == Outcome::done, "a call was not done");
            for (const int each : times) check(each == 1, "an item was not done once");
        }
    });
}

void calls_inside_of_calls() {
    from_several_threads([](int) {
        std::array<std::array<int, 8>, 8> times{};
        const Outcome outcome = parallel_for(8, kWorth, kPerCall, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Outcome inner = parallel_for(8, kWorth, kPerCall, [&](int64_t first, int64_t last) {
                    for (int64_t j = first; j < last; ++j) {
                        ++times[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)];
                    }
                });
                check(inner == Outcome::done, "a call inside of a call was not done");
            }
        });
        check(outcome == Outcome::done, "a call around calls was not done");
        for (const auto& row : times) {
            for (const int each : row) check(each == 1, "an item of a call inside of a call was not done once");
        }
    });
}

void calls_that_are_cancelled() {
    set_interrupt_check([] { return true; });
    from_several_threads([](int) {
        for (int i = 0; i < 3; ++i) {
            const Outcome outcome = parallel_for(100, kWorth, kPerCall, [](int64_t, int64_t) {
                while (!poll()) std::this_thread::yield();  // until the check cancels it
            });
            check(outcome == Outcome::interrupted, "a call was not cancelled");
        }
    });
    set_interrupt_check(nullptr);
}

void calls_without_memory() {
    from_several_threads([](int caller) {
        for (int i = 0; i < 50; ++i) {
            const Outcome outcome = parallel_for(40, kWorth, kPerCall, [&](int64_t begin, int64_t end) {
                if (begin <= 10 + caller && 10 + caller < end) throw std::bad_alloc();
            });
            check(outcome == Outcome::out_of_memory, "a call without memory was done");
        }
    });
}

// --- kernels and plans

using Floats = std::vector<float>;
using Integers = std::vector<int64_t>;

Floats random_boxes(std::mt19937& random, std::size_t n) {
    std::uniform_real_distribution<float> place(0, 0.8f), size(0.05f, 0.2f);
    Floats boxes(4 * n);
    for (std::size_t i = 0; i < boxes.size(); i += 4) {
        boxes[i] = place(random), boxes[i + 1] = place(random);
        boxes[i + 2] = boxes[i] + size(random), boxes[i + 3] = boxes[i + 1] + size(random);
    }
    return boxes;
}

const Kernels<float>& kernels() {
    static const Kernels<float>& best = choose_table(nullptr).float32;
    return best;
}

using Plan = PlanCache<float>::Entry;

PlanCache<float> plans;

Plan known_plan(uint64_t mark, const Floats& anchors) {
    for (const Plan& plan : plans.alike(mark)) {
        if (plan->is_of(anchors.data(), static_cast<int64_t>(anchors.size() / 4))) return plan;
    }
    return nullptr;
}

// As plan_of in csrc/bindings/matching.h, which knows Python.
Plan plan_of(const Floats& anchors) {
    const int64_t n = static_cast<int64_t>(anchors.size() / 4);
    const uint64_t mark = mark_of(anchors.data(), n);
    if (Plan known = known_plan(mark, anchors)) return known;
    const int64_t plan_bytes = kernels().plan_anchors({nullptr, n, nullptr});
    const auto made = std::make_shared<AnchorPlan<float>>(mark, anchors.data(), n, plan_bytes);
    kernels().plan_anchors({made->anchors(), n, made->data()});
    if (Plan known = known_plan(mark, anchors)) return known;
    plans.add(made);
    return made;
}

constexpr int64_t kImages = 6, kAnchors = 300, kTruths = 4, kClasses = 5, kPlaces = 20;

struct Results {
    Integers gt_idx = Integers(kImages * kAnchors), labels = Integers(kImages * kPlaces), places = labels,
             counts = Integers(kImages);
    Floats iou = Floats(kImages * kAnchors), pairs = Floats(kImages * kAnchors * kTruths),
           decoded = Floats(kImages * kAnchors * 4), gradient = Floats(kImages * kAnchors * kClasses),
           boxes = Floats(kImages * kPlaces * 4), scores = Floats(kImages * kPlaces);
    std::vector<double> losses = std::vector<double>(kImages);
    std::unique_ptr<bool[]> selected{new bool[kImages * kAnchors]()}, mined{new bool[kImages * kAnchors]()};

    bool operator==(const Results& other) const {
        return gt_idx == other.gt_idx && labels == other.labels && places == other.places && counts == other.counts &&
               iou == other.iou && pairs == other.pairs && decoded == other.decoded && gradient == other.gradient &&
               boxes == other.boxes && scores == other.scores && losses == other.losses &&
               std::equal(selected.get(), selected.get() + kImages * kAnchors, other.selected.get()) &&
               std::equal(mined.get(), mined.get() + kImages * kAnchors, other.mined.get());
    }
};

// What all threads read.
struct Batch {
    Floats anchors, truths, logits, deltas;
    Integers offsets, labels;
    std::unique_ptr<bool[]> positive{new bool[kImages * kAnchors]()};

    explicit Batch(unsigned seed) {
        std::mt19937 random(seed);
        anchors = random_boxes(random, kAnchors);
        truths = random_boxes(random, kImages * kTruths);
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < kImages * kAnchors * kClasses; ++i) logits.push_back(normal(random));
        for (int64_t i = 0; i < kImages * kAnchors * 4; ++i) deltas.push_back(normal(random));
        for (int64_t i = 0; i <= kImages; ++i) offsets.push_back(i * kTruths);
        for (int64_t i = 0; i < kImages * kAnchors; ++i) {
            labels.push_back(i % 29 == 0 ? i % kClasses : 0);
            positive[static_cast<std::size_t>(i)] = labels.back() > 0;
        }
    }

    Results run(int threads) const {
        Results to;
        const auto run_kernel = [&](const auto kernel, const auto& task, int64_t rows) {
            const auto part = [&](int64_t begin, int64_t end) { kernel(task, begin, end); };
            check(parallel_for(rows, kWorth, threads, part) == Outcome::done, "a kernel was not done");
        };
        const Kernels<float>& k = kernels();
        const Plan plan = plan_of(anchors);
        const MatchAnchorsTask<float> match{plan->data(), kAnchors,         truths.data(),    offsets.data(), 0.5,
                                            0.4,          ForceMatch::best, to.gt_idx.data(), to.iou.data()};
        run_kernel(k.match_anchors, match, kImages);
        const CodingTask<float> decode{deltas.data(), anchors.data(), kAnchors, {0.1, 0.2}, to.decoded.data()};
        run_kernel(k.decode_boxes, decode, kImages * kAnchors);
        const PairwiseTask<float> pairs{to.decoded.data(), truths.data(), kAnchors, kTruths, to.pairs.data()};
        run_kernel(k.box_iou, pairs, kImages * kAnchors);
        const MineHardNegativesTask<float> mine{logits.data(), positive.get(), kAnchors, 3, 1, to.mined.get()};
        run_kernel(k.mine_hard_negatives, mine, kImages);
        const MultiboxCrossEntropyTask<float> loss{logits.data(),    labels.data(),    kAnchors, kClasses, 3.0, 1,
                                                   to.losses.data(), to.selected.get()};
        run_kernel(k.multibox_cross_entropy, loss, kImages);
        const MultiboxCrossEntropyGradientTask<float> gradient{logits.data(), labels.data(), to.selected.get(),
                                                               kClasses,      0.5,           to.gradient.data()};
        run_kernel(k.multibox_cross_entropy_gradient, gradient, kImages * kAnchors);
        const PostprocessDetectionsTask<float> detect{logits.data(),
                                                      deltas.data(),
                                                      anchors.data(),
                                                      kAnchors,
                                                      kClasses,
                                                      kPlaces,
                                                      0.1,
                                                      0.45,
                                                      50,
                                                      1.0,
                                                      1.0,
                                                      Activation::softmax,
                                                      {0.1, 0.2},
                                                      to.boxes.data(),
                                                      to.scores.data(),
                                                      to.labels.data(),
                                                      to.places.data(),
                                                      to.counts.data()};
        run_kernel(k.postprocess_detections, detect, kImages);
        return to;
    }
};

void kernels_on_the_same_inputs() {
    const Batch batch(0);
    const Results alone = batch.run(1);
    from_several_threads([&](int) {
        for (int i = 0; i < 5; ++i) check(batch.run(kPerCall) == alone, "a result depends on the threads");
    });
}

// More sets of anchors than the cache keeps, so that plans come and go while others use them.
void plans_of_many_anchors() {
    std::vector<Batch> batches;
    std::vector<Results> alone;
    for (unsigned seed = 0; seed < 80; ++seed) {
        batches.emplace_back(seed);
        alone.push_back(batches.back().run(1));
    }
    from_several_threads([&](int caller) {
        for (std::size_t i = 0; i < 2 * batches.size(); ++i) {
            const std::size_t chosen = (i * static_cast<std::size_t>(2 * caller + 1)) % batches.size();
            const Floats& anchors = batches[chosen].anchors;
            check(plan_of(anchors)->is_of(anchors.data(), kAnchors), "a plan of other anchors");
            if (i % 8 == 0) check(batches[chosen].run(1) == alone[chosen], "a result with a kept plan");
        }
    });
}

}  // namespace
}  // namespace fastssd

int main() {
    const struct {
        const char* name;
        void (*run)();
    } all[] = {
        {"every item once", fastssd::every_item_once},
        {"calls inside of calls", fastssd::calls_inside_of_calls},
        {"calls that are cancelled", fastssd::calls_that_are_cancelled},
        {"calls without memory", fastssd::calls_without_memory},
        {"kernels on the same inputs", fastssd::kernels_on_the_same_inputs},
        {"plans of many anchors", fastssd::plans_of_many_anchors},
    };
    for (const auto& each : all) {
        each.run();
        std::printf("threads: %s: no race, right results\n", each.name);
    }
    return 0;
}
