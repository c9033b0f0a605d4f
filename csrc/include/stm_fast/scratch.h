// Scratch memory, aligned to cache lines.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "stm_fast/matrix.h"

namespace stm_fast {

inline constexpr Index cache_line = 64;

// Uninitialised bytes. Making one throws std::bad_alloc, so it is done outside of parallel regions.
class Scratch {
 public:
  explicit Scratch(Index bytes)
      : data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{cache_line}))) {}

  std::byte* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{cache_line}); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

// Hands out consecutive pieces of a block of bytes. With no block it only counts how many are needed.
class Carver {
 public:
  explicit Carver(std::byte* block) : block_(block) {}

  template <class Element>
  Element* take(Index count) {
    std::byte* piece = block_ == nullptr ? nullptr : block_ + used_;
    used_ += round_up(count * static_cast<Index>(sizeof(Element)), cache_line);
    return reinterpret_cast<Element*>(piece);
  }
  Index used() const { return used_; }

 private:
  std::byte* block_;
  Index used_ = 0;
};

}  // namespace stm_fast
