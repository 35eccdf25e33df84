// CUDA's words in C++17, for running kernels on a CPU: one block after the other, its threads as
// fibers that change at barriers and shuffles only.
//
// Threads run one at a time, upwards or downwards, a warp as far ahead of the others as it gets:
// results that depend on the order (a race) or barriers that some threads do not reach show. What
// it does not have: memory models, timing, and whatever the kernels of this project do not use.

#ifndef RISM_EMULATE_HPP
#define RISM_EMULATE_HPP

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
// Blocks do not overlap. What one leaves there is overwritten before the next.
#define __shared__ static __attribute__((section("shared_memory")))
extern "C" char __start_shared_memory[], __stop_shared_memory[];

using std::isfinite;
using std::max;
using std::min;

struct Index {
    unsigned x, y, z;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

constexpr unsigned warp_size = 32;
constexpr std::size_t stack_bytes = 64 * 1024;

enum class State { ready, at_block, at_warp, done };

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool started = false;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    State state = State::ready;
    unsigned shuffles = 0;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<float> exchange[2];
    ucontext_t before;
    jmp_buf scheduler;
    void (*enter)(void*) = nullptr;
    void* kernel = nullptr;
    unsigned current = 0;
};
inline Block block;

inline void start() {
    block.enter(block.kernel);
    block.fibers[block.current].state = State::done;
    _longjmp(block.scheduler, 1);
}

// Contexts only begin fibers: changing between them would ask the system each time.
inline void go_on(Fiber& fiber) {
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    swapcontext(&block.before, &fiber.context);
}

inline void wait(State state) {
    Fiber& self = block.fibers[block.current];
    self.state = state;
    if (_setjmp(self.place) == 0) _longjmp(block.scheduler, 1);
}

// Whether all threads of [from, to) are in a state; if so they may go on.
inline bool release(unsigned from, unsigned to, State waiting) {
    for (unsigned t = from; t < to; ++t) {
        if (block.fibers[t].state != waiting) return false;
    }
    for (unsigned t = from; t < to; ++t) block.fibers[t].state = State::ready;
    return true;
}

// A warp runs ahead of the others as far as it can.
inline void run_warp(unsigned from, unsigned to, bool downwards) {
    do {
        for (unsigned i = 0; i < to - from; ++i) {
            const unsigned t = downwards ? to - 1 - i : from + i;
            if (block.fibers[t].state != State::ready) continue;
            block.current = t;
            threadIdx = {t, 0, 0};
            go_on(block.fibers[t]);
        }
    } while (release(from, to, State::at_warp));
}

inline void run_block(unsigned threads, bool downwards) {
    std::fill(__start_shared_memory, __stop_shared_memory, '\xff');  // as floats: not a number
    block.fibers.resize(threads);
    for (auto& buffer : block.exchange) buffer.resize(threads);
    for (Fiber& fiber : block.fibers) {
        fiber.state = State::ready;
        fiber.started = false;
        fiber.shuffles = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    do {
        for (unsigned i = 0; i < threads; i += warp_size) {
            const unsigned from = downwards ? threads - warp_size - i : i;
            run_warp(from, from + warp_size, downwards);
        }
    } while (release(0, threads, State::at_block));
    const auto done = [](const Fiber& f) { return f.state == State::done; };
    if (!std::all_of(block.fibers.begin(), block.fibers.end(), done)) {
        throw std::runtime_error("some threads do not reach a barrier");
    }
}

/// Run a kernel over a grid, its arguments by address.
template <typename... Argument, std::size_t... at>
void launch(void (*kernel)(Argument...), Index grid, unsigned threads, bool downwards,
            void** arguments, std::index_sequence<at...>) {
    auto call = [&] { kernel(*static_cast<Argument*>(arguments[at])...); };
    block.enter = [](void* what) { (*static_cast<decltype(call)*>(what))(); };
    block.kernel = &call;
    gridDim = grid;
    blockDim = {threads, 1, 1};
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < blocks; ++i) {
        const unsigned b = downwards ? blocks - 1 - i : i;
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block(threads, downwards);
    }
}

template <typename... Argument>
int run(void (*kernel)(Argument...), Index grid, unsigned threads, int count, bool downwards,
        void** arguments) {
    if (count != static_cast<int>(sizeof...(Argument))) return 1;
    try {
        launch(kernel, grid, threads, downwards, arguments,
               std::index_sequence_for<Argument...>{});
    } catch (const std::runtime_error&) {
        return 2;
    }
    return 0;
}

}  // namespace emulate

inline void __syncthreads() { emulate::wait(emulate::State::at_block); }

inline float __shfl_xor_sync(unsigned, float value, unsigned away) {
    emulate::Fiber& self = emulate::block.fibers[emulate::block.current];
    // Two buffers in turn: who reads one has not been overtaken by who writes the next.
    std::vector<float>& buffer = emulate::block.exchange[self.shuffles++ % 2];
    const unsigned own = emulate::block.current;
    buffer[own] = value;
    emulate::wait(emulate::State::at_warp);
    return buffer[own ^ away];
}

inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}

inline int atomicCAS(int* address, int expected, int value) {
    const int before = *address;
    if (before == expected) *address = value;
    return before;
}

/// A C function of a kernel's name, for ctypes: 0, 1 for a wrong number of arguments, 2 for
/// threads that wait for each other for ever.
#define RISM_EXPORT(name)                                                                     \
    extern "C" int emulated_##name(unsigned x, unsigned y, unsigned z, unsigned threads,      \
                                   int count, int downwards, void** arguments) {              \
        return emulate::run(name, Index{x, y, z}, threads, count, downwards != 0, arguments); \
    }

#endif
