#pragma once

namespace aqhost {

/// The style sheet of the page. It follows the reader's choice of light or dark; on paper the page
/// is light.
extern const char* const kPageStyle;

}  // namespace aqhost
