// The CPU kernels' speed against the ceiling: the fastest pass over the same buffers that only
// moves the bytes. No tensors, no dispatcher, no allocation; the operators' own costs are the
// Python benchmark's business.
//
// Cases run one after another. Inside a case, Google Benchmark repeats all contenders in random
// order, so that a change of the machine's speed meets all of them; medians are compared.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cases.h"
#include "ceilings.h"
#include "problem.h"
#include "recorder.h"
#include "table.h"

namespace torch_ext::bench {
namespace {

// Later flags take precedence: those of the user follow these.
constexpr const char* kDefaultFlags[] = {
    "--benchmark_enable_random_interleaving=true",
    "--benchmark_repetitions=7",
    "--benchmark_min_time=0.02",
};

struct Options {
  std::string cases = TORCH_EXT_CORE_CASES;
  std::string only;
  std::string json;
  std::vector<int> threads;
};

void print_help() {
  std::printf(
      "kernels_benchmark\n"
      "          [--cases=FILE]         default: %s\n"
      "          [--only=TEXT]          cases whose title has TEXT\n"
      "          [--threads=N[,N...]]   default: 1 and all cores\n"
      "          [--benchmark_out=FILE] all figures, as JSON\n"
      "and those of Google Benchmark, by default",
      TORCH_EXT_CORE_CASES);
  for (const char* flag : kDefaultFlags) {
    std::printf(" %s", flag);
  }
  std::printf("\n");
  benchmark::PrintDefaultHelp();
}

std::vector<int> parse_threads(const std::string& text) {
  std::vector<int> threads;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const int count = std::atoi(text.substr(at, comma - at).c_str());
    if (count < 1) {
      throw std::runtime_error("--threads: no number of threads in '" + text + "'");
    }
    threads.push_back(count);
    at = comma + 1;
  }
  return threads;
}

// Takes our flags out of the arguments; Google Benchmark gets the others.
Options take_options(std::vector<std::string>& arguments) {
  Options options;
  std::string threads;
  const std::pair<std::string_view, std::string*> flags[] = {
      {"--cases=", &options.cases},
      {"--only=", &options.only},
      {"--threads=", &threads},
      {"--benchmark_out=", &options.json},
  };
  std::erase_if(arguments, [&](const std::string& argument) {
    for (const auto& [name, value] : flags) {
      if (argument.starts_with(name)) {
        *value = argument.substr(name.size());
        return true;
      }
    }
    return false;
  });
  if (!threads.empty()) {
    options.threads = parse_threads(threads);
  } else {
    options.threads = {1};
    if (omp_get_max_threads() > 1) {
      options.threads.push_back(omp_get_max_threads());
    }
  }
  return options;
}

std::string name_of(const Case& row, const std::string& what, int threads) {
  return row.title + "/" + what + "/threads:" + std::to_string(threads);
}

// A pass of the kernels, and what it is compared with.
struct Rivalry {
  const char* pass;
  const char* ceiling;
  int tensors;  // that must move
  void (Problem::*ours)(int threads);
  void (Problem::*move)(Pass pass, int threads);
  std::span<const Ceiling> ceilings;

  std::string ceiling_name(const Ceiling& way) const {
    return std::string(ceiling) + "-" + way.name;
  }
};

std::vector<Rivalry> rivalries() {
  return {
      {"forward", "copy", 2, &Problem::forward, &Problem::copy, copies()},
      {"backward", "stream", 3, &Problem::backward, &Problem::stream, streams()},
  };
}

void add_benchmark(const std::string& name, size_t bytes, const std::function<void()>& run) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    for (auto _ : state) {
      run();
      benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes));
  })->UseRealTime();
}

void register_all(const Case& row, Problem& problem, const std::vector<int>& threads) {
  for (const Rivalry& rivalry : rivalries()) {
    const size_t bytes = rivalry.tensors * problem.bytes();
    for (const int count : threads) {
      add_benchmark(name_of(row, rivalry.pass, count), bytes, [=, &problem] {
        (problem.*rivalry.ours)(count);
      });
      for (const Ceiling& way : rivalry.ceilings) {
        add_benchmark(name_of(row, rivalry.ceiling_name(way), count), bytes, [=, &problem] {
          (problem.*rivalry.move)(way.run, count);
        });
      }
    }
  }
}

std::optional<Figure> figure_of(
    const Recorder& recorder, const Case& row, const Rivalry& rivalry, size_t bytes, int threads) {
  const auto rate = [&](const std::string& what) -> std::optional<double> {
    const auto seconds = recorder.median_seconds(name_of(row, what, threads));
    return seconds ? std::optional(rivalry.tensors * bytes / *seconds / 1e9) : std::nullopt;
  };
  const std::optional<double> ours = rate(rivalry.pass);
  Figure figure{ours.value_or(0), 0, ""};
  for (const Ceiling& way : rivalry.ceilings) {
    if (const auto ceiling = rate(rivalry.ceiling_name(way)); ceiling > figure.ceiling) {
      figure.ceiling = *ceiling;
      figure.fastest = way.name;
    }
  }
  return ours && figure.ceiling > 0 ? std::optional(figure) : std::nullopt;
}

void run_case(const Case& row, const std::vector<int>& threads, Recorder& recorder, Table& table) {
  const std::unique_ptr<Problem> problem = make_problem(row);
  problem->check(*std::max_element(threads.begin(), threads.end()));
  register_all(row, *problem, threads);
  benchmark::RunSpecifiedBenchmarks(&recorder);
  benchmark::ClearRegisteredBenchmarks();
  for (const Rivalry& rivalry : rivalries()) {
    std::vector<std::optional<Figure>> figures;
    for (const int count : threads) {
      figures.push_back(figure_of(recorder, row, rivalry, problem->bytes(), count));
    }
    table.add(row.title, rivalry.pass, row.view.numel(), figures);
  }
}

std::vector<Case> chosen_cases(const Options& options) {
  std::vector<Case> cases = read_cases(options.cases);
  std::erase_if(
      cases, [&](const Case& row) { return row.title.find(options.only) == std::string::npos; });
  if (cases.empty()) {
    throw std::runtime_error(options.cases + ": no case has '" + options.only + "' in its title");
  }
  return cases;
}

// `arguments` must live on: Google Benchmark keeps the program's name.
void initialize_library(std::vector<std::string>& arguments) {
  std::vector<char*> pointers;
  for (std::string& argument : arguments) {
    pointers.push_back(argument.data());
  }
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data(), print_help);
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) {
    throw std::runtime_error("see --help");
  }
}

void run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin() + 1, std::begin(kDefaultFlags), std::end(kDefaultFlags));
  const Options options = take_options(arguments);
  initialize_library(arguments);
  benchmark::AddCustomContext("kernels", capability());
  benchmark::AddCustomContext("cases", options.cases);

  const std::vector<Case> cases = chosen_cases(options);
  std::vector<std::string> titles;
  for (const Case& row : cases) {
    titles.push_back(row.title);
  }
  Recorder recorder(options.json);
  Table table(titles, options.threads);
  for (const Case& row : cases) {
    run_case(row, options.threads, recorder, table);
  }
  table.print_summary();
}

}  // namespace
}  // namespace torch_ext::bench

int main(int argc, char** argv) {
  try {
    torch_ext::bench::run({argv, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_benchmark: %s\n", error.what());
    return 1;
  }
}
