// Scratch memory, aligned to cache lines.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "stm_fast/matrix.h"

namespace stm_fast {

template <class T>
class Scratch {
 public:
  static constexpr Index alignment = 64;

  // `count` elements, uninitialised. Throws std::bad_alloc, so make it outside of parallel regions.
  explicit Scratch(Index count)
      : data_(
            static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{alignment}))) {
  }

  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{alignment}); }
  };
  std::unique_ptr<T, Free> data_;
};

// Hands out consecutive pieces of one block. A first pass with no block only counts.
template <class T>
class Carver {
 public:
  explicit Carver(T* block) : block_(block) {}

  T* take(Index count) {
    T* piece = block_ == nullptr ? nullptr : block_ + used_;
    used_ += round_up(count, Scratch<T>::alignment / static_cast<Index>(sizeof(T)));
    return piece;
  }
  Index used() const { return used_; }

 private:
  T* block_;
  Index used_ = 0;
};

}  // namespace stm_fast
