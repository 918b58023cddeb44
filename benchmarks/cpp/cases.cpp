#include "cases.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace torch_ext::bench {
namespace {

struct Row {
  std::string name, shape, layout, slopes, dtype;
};

// Nothing for a line without words.
std::optional<Row> split(const std::string& line) {
  std::istringstream words(line.substr(0, line.find('#')));
  Row row;
  if (!(words >> row.name)) {
    return std::nullopt;
  }
  std::string excess;
  if (!(words >> row.shape >> row.layout >> row.slopes >> row.dtype) || words >> excess) {
    throw std::runtime_error("not of the form 'name shape layout slopes dtype'");
  }
  return row;
}

std::vector<int64_t> parse_shape(const std::string& text) {
  std::vector<int64_t> shape;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int64_t size = 0;
    const auto [rest, error] = std::from_chars(at, end, size);
    if (error != std::errc() || size < 1 || (rest != end && *rest != 'x')) {
      throw std::runtime_error("no shape: " + text);
    }
    shape.push_back(size);
    if (rest == end) {
      return shape;
    }
    at = rest + 1;
  }
}

bool is_one_of(const std::string& word, std::initializer_list<const char*> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

ChannelView fold(const std::vector<int64_t>& shape, const Row& row) {
  const auto product = [](auto first, auto last) {
    return std::accumulate(first, last, int64_t{1}, std::multiplies<>());
  };
  if (row.slopes == "shared") {
    return {1, 1, product(shape.begin(), shape.end())};
  }
  if (row.slopes != "channel" || shape.size() < 2) {
    throw std::runtime_error("no such slopes for this shape: " + row.slopes);
  }
  const int64_t rest = product(shape.begin() + 2, shape.end());
  if (row.layout == "channels_last") {
    return {shape[0] * rest, shape[1], 1};
  }
  return {shape[0], shape[1], rest};
}

Case make_case(const Row& row) {
  if (!is_one_of(row.layout, {"contiguous", "channels_last", "misaligned", "expanded"})) {
    throw std::runtime_error("no such layout: " + row.layout);
  }
  const std::string layout = row.layout == "contiguous" ? "" : row.layout + " ";
  const size_t slash = row.dtype.find('/');
  const std::string dtype = row.dtype.substr(0, slash);
  return {
      row.name + " " + row.shape + " " + layout + row.slopes + " " + row.dtype,
      fold(parse_shape(row.shape), row),
      dtype,
      slash == std::string::npos ? dtype : row.dtype.substr(slash + 1),
      row.layout == "misaligned",
  };
}

}  // namespace

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error(path + ": cannot be read");
  }
  std::vector<Case> cases;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    try {
      // An expanded gradient is made dense before the kernels see it: what runs is "contiguous".
      if (const std::optional<Row> row = split(line); row && row->layout != "expanded") {
        cases.push_back(make_case(*row));
      }
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ":" + std::to_string(number) + ": " + error.what());
    }
  }
  return cases;
}

}  // namespace torch_ext::bench
