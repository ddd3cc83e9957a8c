// What the kernels ask of the process: threads from torch's pool and aligned memory.
#include "host.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>

namespace fastav {

namespace {

constexpr int64_t ALIGNMENT = 64;

}  // namespace

// A tensor, which torch aligns to 64 bytes: whoever counts its memory counts this too.
Scratch::Scratch(int64_t bytes) : data_(nullptr), owner_(nullptr) {
    if (bytes == 0) return;
    auto* const owner = new torch::stable::Tensor(torch::stable::empty(
        {bytes}, torch::headeronly::ScalarType::Byte, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU)));
    owner_ = owner;
    data_ = static_cast<char*>(owner->data_ptr());
}

Scratch::Scratch(Scratch&& other) noexcept : data_(other.data_), owner_(other.owner_) { other.owner_ = nullptr; }

Scratch::~Scratch() { delete static_cast<torch::stable::Tensor*>(owner_); }

void parallel(int64_t items, int64_t bytes, void (*body)(void*, int64_t, char*), void* context) {
    if (items == 0) return;
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), items);
    const int64_t each = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const Scratch workspaces(threads * each);
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread)
            for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;)
                body(context, item, workspaces.data() + thread * each);
    });
}

}  // namespace fastav
