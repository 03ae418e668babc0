# cpack, run in the build folder, creates two Debian packages: aqhost has the program, its plugins and
# the LibTorch that it was built with; aqhost-sdk has everything that a plugin author needs, and no
# LibTorch.
set(CPACK_PACKAGE_NAME aqhost)
set(CPACK_PACKAGE_VENDOR AlphaQuant)
set(CPACK_PACKAGE_CONTACT "the aqhost authors <aqhost@invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Quantizer for Mixture-of-Experts language models")
set(CPACK_GENERATOR DEB)
set(CPACK_COMPONENTS_ALL host libtorch sdk)
set(CPACK_COMPONENT_HOST_GROUP aqhost)
set(CPACK_COMPONENT_LIBTORCH_GROUP aqhost)
set(CPACK_COMPONENT_SDK_GROUP sdk)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_AQHOST_PACKAGE_NAME aqhost)
set(CPACK_DEBIAN_SDK_PACKAGE_NAME aqhost-sdk)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_AQHOST_PACKAGE_SHLIBDEPS OFF)  # LibTorch is linked to CUDA libraries that a run on the CPU never calls
set(CPACK_DEBIAN_AQHOST_PACKAGE_DEPENDS "libc6, libgcc-s1, libfmt9, libspdlog1.10-fmt9, libyaml-cpp0.7, libpcre2-8-0, libicu72, libssl3, libjemalloc2, libstdc++6")
set(CPACK_DEBIAN_SDK_PACKAGE_DEPENDS "libdlpack-dev, nlohmann-json3-dev, cmake")
include(CPack)
