// Scratch memory of a kernel, uninitialised, aligned for the widest vectors. Throws std::bad_alloc.
// (std::vector would leave weak symbols that the linker may take from the object of another instruction set.)
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastssd::FASTSSD_ISA {

template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t size) : size_(size), data_(allocate(size)) {}
    ~Buffer() { ::operator delete(data_, kAlign); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

    // Room for at least `size`; the first `used` stay.
    void reserve(int64_t size, int64_t used) {
        if (size <= size_) return;
        const int64_t grown = size > 2 * size_ ? size : 2 * size_;
        T* const data = allocate(grown);
        std::memcpy(data, data_, static_cast<std::size_t>(used) * sizeof(T));
        ::operator delete(data_, kAlign);
        data_ = data;
        size_ = grown;
    }

  private:
    static constexpr std::align_val_t kAlign{64};
    static constexpr std::size_t kLargeBytes = std::size_t(1) << 22;

    // Random access to much memory is bound by the lookup of pages. What cannot be had is done without.
    static void ask_for_large_pages(void* data, std::size_t bytes) {
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

    static T* allocate(int64_t size) {
        const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
        void* const data = ::operator new(bytes, kAlign);
        if (bytes >= kLargeBytes) ask_for_large_pages(data, bytes);
        return static_cast<T*>(data);
    }

    int64_t size_;
    T* data_;
};

}  // namespace fastssd::FASTSSD_ISA
