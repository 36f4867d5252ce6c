// Scratch memory of a kernel, uninitialised, aligned for the widest vectors. Throws std::bad_alloc.
// (std::vector would leave weak symbols, which the linker may take from the object of another instruction set.)
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastssd::FASTSSD_ISA {

constexpr std::align_val_t kScratchAlign{64};

// Large pages, because random access to much memory is limited by the lookup of pages. Only a request: it may fail.
inline void ask_for_large_pages(void* data, std::size_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kPage = 4096;
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(kPage - 1);
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(data);
    static_cast<void>(bytes);
#endif
}

template <typename T>
T* allocate_scratch(int64_t size) {
    constexpr std::size_t kLargeBytes = std::size_t(1) << 22;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    void* const data = ::operator new(bytes, kScratchAlign);
    if (bytes >= kLargeBytes) ask_for_large_pages(data, bytes);
    return static_cast<T*>(data);
}

inline void free_scratch(void* data) { ::operator delete(data, kScratchAlign); }

template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t size) : size_(size), data_(allocate_scratch<T>(size)) {}
    ~Buffer() { free_scratch(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

    // Makes room for at least `size`, and keeps the first `used` elements.
    void reserve(int64_t size, int64_t used) {
        if (size <= size_) return;
        const int64_t grown = size > 2 * size_ ? size : 2 * size_;
        T* const data = allocate_scratch<T>(grown);
        std::memcpy(data, data_, static_cast<std::size_t>(used < size_ ? used : size_) * sizeof(T));
        free_scratch(data_);
        data_ = data;
        size_ = grown;
    }

  private:
    int64_t size_;
    T* data_;
};

// A Buffer that holds up to kFew elements in the object itself: without it, a call on few boxes would spend most of its
// time on allocation. For the stack.
template <typename T, int64_t kFew>
class SmallBuffer {
  public:
    explicit SmallBuffer(int64_t size) : data_(size > kFew ? allocate_scratch<T>(size) : few_) {}
    ~SmallBuffer() {
        if (data_ != few_) free_scratch(data_);
    }
    SmallBuffer(const SmallBuffer&) = delete;
    SmallBuffer& operator=(const SmallBuffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

  private:
    T* const data_;
    T few_[kFew];  // aligned as T is, not for vectors, so that the stack frame needs no alignment either
};

}  // namespace fastssd::FASTSSD_ISA
