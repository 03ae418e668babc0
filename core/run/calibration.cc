#include "run/calibration.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/counted.h"
#include "base/error.h"
#include "calibrate/windows.h"
#include "run/balance.h"

namespace aqhost {
namespace {

constexpr int64_t kPool = 4;  // how many times as many windows the pool of --balance-experts has

/// Names a window: its file, and its index in that file.
struct WindowPlace {
  std::size_t file;
  int64_t index;
  bool operator==(const WindowPlace&) const = default;
};

/// All windows of the files.
struct Corpus {
  std::vector<FileWindows> files;
  std::optional<int64_t> separator;  // the token between documents that share a window
  std::vector<int64_t> available;    // the number of windows per file
  std::vector<double> weights;       // the share that each file should give
};

Corpus read_files(const Source& original, const Model& model, const CalibrationOptions& options,
                  RunObserver& observer) {
  Corpus corpus;
  corpus.separator = document_separator(original.config(), model.desc().vocab_size);
  CorpusReader reader(original.directory(), model.desc().vocab_size, corpus.separator);
  for (const CorpusFile& file : options.files) {
    corpus.files.push_back(read_windows(reader, file.path, options.seqlen, observer));
    corpus.available.push_back(corpus.files.back().ids.size(0));
    corpus.weights.push_back(file.weight);
  }
  return corpus;
}

/// Chooses `count` windows; the files take turns. The windows of a smaller count are among those of
/// a larger one.
std::vector<WindowPlace> choose(const Corpus& corpus, int64_t count, uint64_t seed) {
  const auto turns = share_windows(corpus.available, corpus.weights, count);
  std::vector<std::vector<int64_t>> samples;
  for (std::size_t i = 0; i < corpus.available.size(); i++)
    samples.push_back(sample(corpus.available[i], std::count(turns.begin(), turns.end(), i), seed));
  std::vector<std::size_t> next(corpus.available.size(), 0);
  std::vector<WindowPlace> places;
  for (const std::size_t i : turns) places.push_back({i, samples[i][next[i]++]});
  return places;
}

at::Tensor windows_at(const Corpus& corpus, const std::vector<WindowPlace>& places) {
  std::vector<at::Tensor> rows;
  for (const WindowPlace& place : places) rows.push_back(corpus.files[place.file].ids[place.index]);
  return at::stack(rows);
}

int64_t count_of(const std::vector<WindowPlace>& places, std::size_t file) {
  return std::count_if(places.begin(), places.end(),
                       [&](const WindowPlace& p) { return p.file == file; });
}

/// The number of windows of text that the options ask for. The others are random.
int64_t text_windows(const CalibrationOptions& options) {
  return options.nsamples - options.nsamples * options.random_percent / 100;
}

/// Adds random windows to `text` [n, length], in the share that the options ask for; text and
/// random windows take turns.
at::Tensor with_random(const at::Tensor& text, int64_t vocab_size,
                       const CalibrationOptions& options) {
  const int64_t asked = text_windows(options), n = text.size(0);
  const int64_t count = (options.nsamples - asked) * n / asked;
  const at::Tensor random = random_windows(count, options.seqlen, vocab_size, options.seed);
  std::array<int64_t, 2> next{};
  std::vector<at::Tensor> rows;
  const std::vector<double> weights{static_cast<double>(n), static_cast<double>(count)};
  for (const std::size_t from : share_windows({n, count}, weights, n + count))
    rows.push_back((from == 0 ? text : random)[next[from]++]);
  return at::stack(rows);
}

/// Replaces `places` by windows from a larger pool that use experts more evenly; each file keeps
/// its number of windows.
CalibrationReport::Balance balance(const Source& original, const Model& model,
                                   const CalibrationOptions& options, const at::TensorOptions& run,
                                   const Corpus& corpus, std::vector<WindowPlace>& places,
                                   RunObserver& observer) {
  const std::vector<WindowPlace> pool = choose(corpus, kPool * text_windows(options), options.seed);
  if (pool.size() == places.size())
    observer.warn(
        fmt::format("--balance-experts: the text has {}, there are no others to choose from",
                    counted(static_cast<int64_t>(pool.size()), "window")));
  observer.begin("balancing experts", model.desc().n_layers, "layers");
  const WindowUse use = window_use(
      original, model, windows_at(corpus, pool), run,
      [&](int32_t layer) { observer.update(layer + 1, fmt::format("layer {}", layer)); });
  observer.end();
  std::vector<int64_t> before, quota;
  std::vector<std::size_t> file;
  for (const WindowPlace& place : pool) {
    if (std::find(places.begin(), places.end(), place) != places.end())
      before.push_back(static_cast<int64_t>(file.size()));
    file.push_back(place.file);
  }
  for (std::size_t i = 0; i < corpus.files.size(); i++) quota.push_back(count_of(places, i));
  const std::vector<int64_t> after = choose_balanced(use, file, quota);
  places.clear();
  for (const int64_t w : after) places.push_back(pool[static_cast<std::size_t>(w)]);
  return {static_cast<int64_t>(pool.size()), spread_of(use, before), spread_of(use, after)};
}

}  // namespace

FileWindows read_windows(CorpusReader& reader, const std::filesystem::path& file, int64_t length,
                         RunObserver& observer) {
  FileWindows read = reader.read(file, length);
  if (const std::string joined = describe_joined(read, reader.separator()); !joined.empty())
    observer.inform(fmt::format("{}: {}", file.string(), joined));
  if (read.chats > 0 && read.templated)
    observer.inform(fmt::format(
        "{}: the chats ({} of its documents) are read as the model's chat template writes them",
        file.string(), read.chats));
  if (read.chats > 0 && !read.templated)
    observer.warn(fmt::format(
        "{}: the model has no chat template; the turns of the chats ({} of its documents) are "
        "joined by empty lines",
        file.string(), read.chats));
  return read;
}

Calibration read_calibration(const Source& original, const Model& model,
                             const CalibrationOptions& options, const at::TensorOptions& run,
                             RunObserver& observer) {
  const int64_t longest = model.desc().max_positions;
  if (longest > 0 && options.seqlen > longest)
    fail("--seqlen {} is longer than the {} positions the model was made for", options.seqlen,
         longest);
  const Corpus corpus = read_files(original, model, options, observer);
  const int64_t text = text_windows(options);
  std::vector<WindowPlace> places = choose(corpus, text, options.seed);
  double total_weight = 0;
  for (const double weight : corpus.weights) total_weight += weight;
  CalibrationReport report;
  for (std::size_t i = 0; i < options.files.size(); i++) {
    const double asked = std::floor(static_cast<double>(text) * corpus.weights[i] / total_weight);
    if (static_cast<double>(corpus.available[i]) < asked)
      observer.warn(fmt::format("{}: {} of {} tokens, {:.0f} were asked for",
                                options.files[i].path.string(),
                                counted(corpus.available[i], "window"), options.seqlen, asked));
    const FileWindows& read = corpus.files[i];
    CalibrationReport::File file;
    file.file = options.files[i].path.filename().string();
    file.weight = corpus.weights[i];
    file.windows = count_of(places, i);
    file.available = corpus.available[i];
    file.documents = read.documents;
    file.tokens = read.tokens;
    file.unused_tokens = read.unused;
    file.joined_windows = read.joined;
    if (read.joined > 0) file.separator = corpus.separator;
    report.files.push_back(std::move(file));
  }
  report.seqlen = options.seqlen;
  report.seed = options.seed;
  if (options.balance_experts)
    report.balance = balance(original, model, options, run, corpus, places, observer);
  const at::Tensor windows =
      with_random(windows_at(corpus, places), model.desc().vocab_size, options);
  report.windows = windows.size(0);
  report.random_windows = windows.size(0) - static_cast<int64_t>(places.size());
  return {windows, report};
}

}  // namespace aqhost
