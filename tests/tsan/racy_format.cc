// A format that holds to every rule but for a data race that no result shows.
#include <aq/sdk/int_format.hpp>

namespace {

class Counting : public aq::Quantizer {
 public:
  using Quantizer::Quantizer;
  void quantize(const aq_code_args& args) const override {
    calls_++;
    Quantizer::quantize(args);
  }

 private:
  mutable int calls_ = 0;
};

struct Racy {
  static constexpr aq::Descriptor kDescriptor{"racy", "racy", "1.0", "tests", "counts its calls"};
  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    aq::FormatSpec spec = aq::int_format(4, options);
#ifdef AQ_RACY_CUSTOM  // the host asks the plugin for every number
    spec.custom.codes = true;
#endif
    return std::make_unique<Counting>(std::move(spec));
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Racy);
