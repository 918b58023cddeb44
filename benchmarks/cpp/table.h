// The figures as people read them: a line per case and pass, then what they come to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torch_ext::bench {

// One pass of one case with one number of threads.
struct Figure {
  double ours;          // GB/s of the bytes that must move
  double ceiling;       // the same of the fastest pass that only moves them
  std::string fastest;  // its name

  double fraction() const { return ours / ceiling; }
};

class Table {
 public:
  // `titles`: of all cases that may come, for the width of their column.
  Table(const std::vector<std::string>& titles, std::vector<int> threads);

  // Prints the line. `figures`: one for each number of threads, nothing where it was not measured.
  void add(
      const std::string& title,
      const std::string& pass,
      int64_t numel,
      const std::vector<std::optional<Figure>>& figures);
  void print_summary() const;

 private:
  struct Entry {
    std::string title;
    std::string pass;
    int threads;
    bool small;
    double fraction;
  };
  void print_header() const;
  void print_summary_of(const std::string& pass, int threads, bool small) const;

  int title_width_;
  std::vector<int> threads_;
  bool has_header_ = false;
  std::vector<Entry> entries_;
};

}  // namespace torch_ext::bench
