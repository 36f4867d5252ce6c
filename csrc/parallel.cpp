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

constexpr auto kBetweenChecks = std::chrono::milliseconds(50);  // so that a Ctrl-C is noticed within 100 ms
constexpr double kPartNs = 500e3;                               // a part is at most this much work
constexpr int kPartsPerThread = 4;  // and so small that all threads end at about the same time

std::atomic<InterruptCheck> interrupt_check{nullptr};
std::atomic<unsigned> forks{0};  // between the first process and this one

// One call of parallel_for, on the caller's stack.
struct Job {
    const RangeFn fn;
    const void* const context;
    const int64_t n;
    const int64_t part;
    const int64_t parts = n / part + (n % part != 0);
    std::atomic<int64_t> next{0};
    std::atomic<bool> cancelled{false};
    std::atomic<Outcome> outcome{Outcome::done};
    const unsigned forks_at_start = forks.load(std::memory_order_relaxed);
    Clock::time_point checked = Clock::now();  // only the caller reads and writes it

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

// The call that this thread works for, and whether this thread made it.
struct Role {
    Job* job;
    bool caller;
};
thread_local Role role{nullptr, false};

// A role for as long as this object exists.
class RoleScope {
  public:
    explicit RoleScope(Role now) : before_(role) { role = now; }
    ~RoleScope() { role = before_; }
    RoleScope(const RoleScope&) = delete;
    RoleScope& operator=(const RoleScope&) = delete;

  private:
    const Role before_;
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

// Never destroyed: the workers live longer than the static objects of the process.
Pool* const pool = [] {
    alignas(Pool) static unsigned char storage[sizeof(Pool)];
#ifndef _WIN32
    // The child has no workers, and a mutex that one of them may have locked: it starts with a new pool.
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
            const RoleScope scope({job, false});
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

    // In a destructor, because the thread may be unwound in the middle of its work: Python ends daemon threads so.
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
    if (job.forks_at_start != forks) return;  // in a child, which has no workers and another pool
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    if (running_ > 0) job.cancelled = true;
    idle_.wait(lock, [this] { return running_ == 0; });
    busy_.store(false, std::memory_order_release);
}

}  // namespace

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

bool poll() {
    Job* const job = role.job;
    if (job == nullptr) return false;
    if (job->cancelled.load(std::memory_order_relaxed)) return true;
    if (!role.caller || Clock::now() - job->checked < kBetweenChecks) return false;
    const InterruptCheck check = interrupt_check;
    bool stop = false;
    {
        const RoleScope scope({nullptr, false});  // the check may run any code, even another call of parallel_for
        stop = check != nullptr && check();
    }
    // If the check forked, this may be the child, and the parts that workers had taken are lost.
    if (stop || job->forks_at_start != forks) job->cancel(Outcome::interrupted);
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
    const RoleScope scope({&job, true});
    const int helpers = static_cast<int>(std::min(most_threads, job.parts)) - 1;
    if (helpers > 0 && static_cast<double>(n) * ns_per_item >= kParallelNs && pool->acquire()) {
        pool->run(job, helpers);
    } else {
        job.work();
    }
    return job.outcome;
}

}  // namespace fastssd
