// Scratch memory of a kernel, uninitialised, aligned for the widest vectors. Throws std::bad_alloc.
// (std::vector would leave weak symbols that the linker may take from the object of another instruction set.)
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

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

    static T* allocate(int64_t size) {
        return static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), kAlign));
    }

    int64_t size_;
    T* data_;
};

}  // namespace fastssd::FASTSSD_ISA
