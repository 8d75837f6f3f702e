// Threads that live for one call, taking chunks in turn.
#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hdxray {

void parallel_for(int64_t n, int64_t grain, int n_threads, const std::function<void(int64_t, int64_t)>& body) {
    if (n <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t n_chunks = (n + grain - 1) / grain;
    const int64_t wanted = std::min<int64_t>(std::max(n_threads, 1), n_chunks);
    if (wanted == 1) return body(0, n);

    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto work = [&] {
        try {
            for (int64_t c = next++; c < n_chunks; c = next++) body(c * grain, std::min(n, (c + 1) * grain));
        } catch (...) {
            const std::lock_guard<std::mutex> hold(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(wanted - 1));
    try {
        for (int64_t t = 1; t < wanted; ++t) threads.emplace_back(work);
    } catch (const std::exception&) {
        // No more threads to be had (a limit, no memory): those that started, and this one, do all the work.
    }
    work();
    for (auto& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace hdxray
