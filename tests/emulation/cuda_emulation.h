// Runs CUDA C++ on the CPU, so that kernels can be tested without a GPU: one fiber per thread of a block, blocks one
// after another. A fiber runs until a barrier that not all have reached; the order in which fibers run is up to the
// caller, so that a missing barrier shows as a different result.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define STIF_RT_EMULATION
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
    int x, y, z;
};

static Index blockIdx, threadIdx;

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

namespace emulation {

constexpr int WARP = 32;
constexpr std::size_t STACK = 1 << 16;

struct Barrier {
    int members = 0, arrived = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool finished = false;
};

static std::vector<Fiber> fibers;
static std::vector<Barrier> warps;
static Barrier block;
static ucontext_t scheduler;
static std::function<void()> body;
static int current, events;

static void yield() {
    swapcontext(&fibers[current].context, &scheduler);
}

static void wait(Barrier &barrier) {
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        ++barrier.generation;
        ++events;
        return;
    }
    while (barrier.generation == generation) yield();
}

static void enter() {
    body();
    fibers[current].finished = true;
    ++events;
    yield();
}

// Runs kernel() for every thread of every block. Returns false where the threads wait for each other for ever.
static bool launch(Index grid, int threads, unsigned seed, const std::function<void()> &kernel) {
    std::mt19937 random(seed);
    std::vector<int> order(threads);
    for (int i = 0; i < threads; ++i) order[i] = i;
    body = kernel;
    for (int number = 0; number < grid.x * grid.y * grid.z; ++number) {
        blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        fibers = std::vector<Fiber>(threads);
        warps.assign((threads + WARP - 1) / WARP, {});
        block = {threads};
        for (int i = 0; i < threads; ++i) {
            ++warps[i / WARP].members;
            getcontext(&fibers[i].context);
            fibers[i].context.uc_stack.ss_sp = fibers[i].stack.get();
            fibers[i].context.uc_stack.ss_size = STACK;
            makecontext(&fibers[i].context, enter, 0);
        }
        if (seed) std::shuffle(order.begin(), order.end(), random);
        for (int left = threads; left;) {
            events = left = 0;
            for (int i : order) {
                if (fibers[i].finished) continue;
                current = i;
                threadIdx = {i, 0, 0};
                swapcontext(&scheduler, &fibers[i].context);
                left += !fibers[i].finished;
            }
            if (left && !events) return false;
        }
    }
    return true;
}

}  // namespace emulation

inline void __syncthreads() {
    emulation::wait(emulation::block);
}

inline void __syncwarp() {
    emulation::wait(emulation::warps[threadIdx.x / emulation::WARP]);
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    static T values[1024];
    const int self = threadIdx.x;
    values[self] = value;
    __syncwarp();
    const T found = values[self / emulation::WARP * emulation::WARP + lane % emulation::WARP];
    __syncwarp();
    return found;
}
