#define AQ_JSON_TEMPLATES template
#include "json_templates.h"
