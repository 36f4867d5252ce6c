#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#endif

namespace fastssd {

bool poll();  // declared for the kernels in support/poll.h

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kBetweenChecks = std::chrono::milliseconds(50);  // a Ctrl-C is to be noticed within 100 ms
constexpr double kPartNs = 500e3;                               // a part is at most this much work,
constexpr int kPartsPerThread = 4;                              // and small enough to even the threads out

std::atomic<InterruptCheck> interrupt_check{nullptr};
std::atomic<unsigned> forks{0};  // that lie behind this process

// One call of parallel_for. Lives on the caller's stack.
struct Job {
    const RangeFn fn;
    const void* const context;
    const int64_t n;
    const int64_t part;
    const int64_t parts = n / part + (n % part != 0);
    std::atomic<int64_t> next{0};
    std::atomic<bool> cancelled{false};
    std::atomic<Outcome> outcome{Outcome::done};
    const unsigned born = forks.load(std::memory_order_relaxed);
    Clock::time_point checked = Clock::now();  // the caller's own

    void cancel(Outcome why) {
        Outcome expected = Outcome::done;
        outcome.compare_exchange_strong(expected, why);
        cancelled = true;
    }

    void work() {
        try {
            while (!poll()) {
                const int64_t taken = next.fetch_add(1, std::memory_order_relaxed);
                if (taken >= parts) return;
                const int64_t begin = taken * part;
                fn(context, begin, begin + std::min(part, n - begin));
            }
        } catch (const std::bad_alloc&) {
            cancel(Outcome::out_of_memory);
        }
    }
};

// The call that this thread takes part in, and whether it is the caller.
struct Place {
    Job* job;
    bool caller;
};
thread_local Place place{nullptr, false};

class At {
  public:
    explicit At(Place now) : before_(place) { place = now; }
    ~At() { place = before_; }
    At(const At&) = delete;
    At& operator=(const At&) = delete;

  private:
    const Place before_;
};

class Pool {
  public:
    bool acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
    void run(Job& job, int helpers);

  private:
    bool add_worker();
    void serve();
    void close(Job& job);

    std::atomic<bool> busy_{false};
    std::mutex mutex_;
    std::condition_variable wake_, idle_;
    // Under the mutex:
    Job* job_ = nullptr;  // open for workers
    int wanted_ = 0;      // workers that may still join it
    int running_ = 0;     // workers in it
    int workers_ = 0;
};

// Never destroyed: the workers outlive the static objects of the process.
Pool* const pool = [] {
    alignas(Pool) static unsigned char storage[sizeof(Pool)];
#ifndef _WIN32
    // The child has no workers, and a mutex that one of them may have held: it starts anew.
    pthread_atfork(nullptr, nullptr, [] {
        ++forks;
        new (storage) Pool;
    });
#endif
    return new (storage) Pool;
}();

bool Pool::add_worker() {
    bool made = true;
#ifndef _WIN32
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited by the worker: signals are for the program's own threads
#endif
    try {
        std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
        made = false;
    } catch (const std::bad_alloc&) {
        made = false;
    }
#ifndef _WIN32
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    return made;
}

void Pool::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return job_ != nullptr && wanted_ > 0; });
        Job* const job = job_;
        --wanted_;
        ++running_;
        lock.unlock();
        {
            const At at({job, false});
            job->work();
        }
        lock.lock();
        if (--running_ == 0) idle_.notify_one();
    }
}

void Pool::run(Job& job, int helpers) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        while (workers_ < helpers && add_worker()) ++workers_;
        wanted_ = helpers = std::min(helpers, workers_);
        job_ = &job;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();

    // A destructor, because the thread may be unwound in the middle of its work: that is how Python ends daemon
    // threads.
    struct Closer {
        Pool& pool;
        Job& job;
        ~Closer() { pool.close(job); }
    } closer{*this, job};
    job.work();

    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    while (!idle_.wait_for(lock, kBetweenChecks, [this] { return running_ == 0; })) {
        lock.unlock();
        poll();
        lock.lock();
    }
}

void Pool::close(Job& job) {
    if (job.born != forks) return;  // in a child: the workers are not here, and this is another pool
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    if (running_ > 0) job.cancelled = true;
    idle_.wait(lock, [this] { return running_ == 0; });
    busy_.store(false, std::memory_order_release);
}

}  // namespace

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

bool poll() {
    Job* const job = place.job;
    if (job == nullptr) return false;
    if (job->cancelled.load(std::memory_order_relaxed)) return true;
    if (!place.caller || Clock::now() - job->checked < kBetweenChecks) return false;
    const InterruptCheck check = interrupt_check;
    bool stop = false;
    {
        const At outside({nullptr, false});  // the check may run anything, even a call of ours
        stop = check != nullptr && check();
    }
    // After a fork in the check this is the child, and the parts that workers had taken are lost.
    if (stop || job->born != forks) job->cancel(Outcome::interrupted);
    job->checked = Clock::now();
    return job->cancelled;
}

Outcome parallel_for(int64_t n, double ns_per_item, int threads, RangeFn fn, const void* context) {
    if (n <= 0) return Outcome::done;
    const int64_t most_threads = std::clamp(threads, 1, kMostThreads);
    const double most = std::max(1.0, kPartNs / std::max(ns_per_item, 1e-3));
    const int64_t even = std::max<int64_t>(1, n / (kPartsPerThread * most_threads));
    const int64_t part = most < static_cast<double>(even) ? static_cast<int64_t>(most) : even;
    Job job{fn, context, n, part};
    const At at({&job, true});
    const int helpers = static_cast<int>(std::min(most_threads, job.parts)) - 1;
    if (helpers > 0 && static_cast<double>(n) * ns_per_item >= kParallelNs && pool->acquire()) {
        pool->run(job, helpers);
    } else {
        job.work();
    }
    return job.outcome;
}

}  // namespace fastssd
