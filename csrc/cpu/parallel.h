// A parallel loop on std::thread.
//
// Not OpenMP: torch ships its own libgomp, a second OpenMP run-time in one process doubles the threads and hangs in
// forked DataLoader workers, and a wheel that links the system's libgomp does not import everywhere. Threads here live
// for one call only, so there is no pool whose state a fork could copy half-way; at the sizes of this package a start
// costs some 20 us.
#pragma once
#include <cstdint>
#include <functional>

namespace hdxray {

// Calls body(begin, end) over disjoint chunks of [0, n), `grain` indices each, on at most n_threads threads, this one
// included. With one thread or one chunk nothing is started. An exception of any chunk is rethrown here after all
// threads have ended.
void parallel_for(int64_t n, int64_t grain, int n_threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace hdxray
