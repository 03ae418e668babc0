// A format that holds to every rule but for a data race that no result shows.
#include <aq/sdk/int_format.hpp>

namespace {

class Counting : public aq::IntFormat {
 public:
  Counting(int bits, aq::Options& options) : IntFormat(bits, options) {
#ifdef AQ_RACY_CUSTOM  // the host asks the plugin for every number
    desc_.element_kind = AQ_ELEM_CUSTOM;
#endif
  }
  void quantize(const aq_code_args& args) const override {
    calls_++;
    IntFormat::quantize(args);
  }

 private:
  mutable int calls_ = 0;
};

struct Racy {
  static constexpr aq::Descriptor kDescriptor{"racy", "racy", "1.0", "tests", "counts its calls"};
  static std::unique_ptr<aq::Quantizer> create(aq::Options& options) {
    return std::make_unique<Counting>(4, options);
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Racy);
