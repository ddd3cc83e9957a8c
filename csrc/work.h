// How work is cut and handed out: items over the entries of a list, and memory cut into arrays.
#pragma once

#include "vector.h"

#if defined(FASTAV_GUARDED)
extern "C" void __asan_poison_memory_region(const volatile void*, __SIZE_TYPE__);
extern "C" void __asan_unpoison_memory_region(const volatile void*, __SIZE_TYPE__);
#endif

namespace fastav {
namespace FASTAV_PATH {

/// Arrays cut one after the other from a piece of memory; without memory it only counts.
class Cutter {
public:
    explicit Cutter(char* from = nullptr) : from_(from) {}

    template <class T>
    T* array(int64_t count) {
        const int64_t bytes = count * int64_t(sizeof(T)), room = (bytes + 63) / 64 * 64 + GUARD;
        char* found = from_ ? from_ + used_ : nullptr;
        if (found) guard(found, bytes, room);
        used_ += room;
        return reinterpret_cast<T*>(found);
    }

    int64_t used() const { return used_; }

private:
#if defined(FASTAV_GUARDED)
    /// For tests, see tests/csrc/driver.cpp: what lies between two arrays belongs to neither.
    static constexpr int64_t GUARD = 64;
    static void guard(const char* from, int64_t bytes, int64_t room) {
        __asan_unpoison_memory_region(from, uint64_t(bytes));
        __asan_poison_memory_region(from + bytes, uint64_t(room - bytes));
    }
#else
    static constexpr int64_t GUARD = 0;
    static void guard(const char*, int64_t, int64_t) {}
#endif

    char* from_;
    int64_t used_ = 0;
};

/// Call `body(item, workspace)` for every item on all threads, see `parallel`.
template <class F>
FASTAV_INLINE void for_each(int64_t items, int64_t bytes, const F& body) {
    struct Call {
        static void run(void* context, int64_t item, char* workspace) {
            (*static_cast<const F*>(context))(item, workspace);
        }
    };
    parallel(items, bytes, &Call::run, const_cast<void*>(static_cast<const void*>(&body)));
}

/// Items of several entries in one row, the entries with the longest items first.
class Items {
public:
    explicit Items(int64_t entries) : memory_(entries * int64_t(sizeof(Entry))) {}

    /// Entry number `entry`, in order: `count` items that cost about `cost` each.
    void put(int64_t entry, int64_t count, int64_t cost) {
        Entry* const all = list();
        int64_t place = filled_++;
        for (; place > 0 && all[place - 1].cost < cost; --place) all[place] = all[place - 1];
        all[place] = {entry, count, cost};
        total_ += count;
    }

    int64_t total() const { return total_; }

    struct Found {
        int64_t entry, item;
    };

    /// Which entry an item belongs to, and which of its items it is.
    Found find(int64_t item) const {
        const Entry* e = list();
        for (; item >= e->count; ++e) item -= e->count;
        return {e->entry, item};
    }

private:
    struct Entry {
        int64_t entry, count, cost;
    };
    Entry* list() const { return reinterpret_cast<Entry*>(memory_.data()); }

    int64_t filled_ = 0, total_ = 0;
    Scratch memory_;
};

}  // namespace FASTAV_PATH
}  // namespace fastav
