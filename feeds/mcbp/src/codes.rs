//! What codes and flags have in common: known ones have names, unknown ones are kept.

/// An enum of the known codes of an integer, with `Other` for the rest.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A code without a name here. Never holds one that has a name when it comes from an integer.
            Other($int),
        }

        impl $name {
            /// Those that have a name, by code.
            pub const KNOWN: &'static [$name] = &[$($name::$variant,)*];

            /// The number on the wire.
            #[inline]
            pub const fn code(self) -> $int {
                match self {
                    $($name::$variant => $code,)*
                    $name::Other(code) => code,
                }
            }
        }

        impl From<$int> for $name {
            #[inline]
            fn from(code: $int) -> Self {
                match code {
                    $($code => $name::$variant,)*
                    _ => $name::Other(code),
                }
            }
        }

        impl $crate::body::Field for $name {
            const LEN: usize = size_of::<$int>();

            #[inline]
            fn read(from: &mut &[u8]) -> Self {
                <$int as $crate::body::Field>::read(from).into()
            }

            #[inline]
            fn write(&self, to: &mut bytes::BytesMut) {
                $crate::body::Field::write(&self.code(), to);
            }
        }
    };
}

/// A set of bits, the known ones with names.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $flag:ident = $bits:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$doc])* pub const $flag: $name = $name($bits);)*

            /// Whether all bits of `flags` are set.
            #[inline]
            pub const fn contains(self, flags: $name) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// These bits without those of `flags`.
            #[inline]
            #[must_use]
            pub const fn without(self, flags: $name) -> $name {
                $name(self.0 & !flags.0)
            }

            /// The bits that have no name here.
            pub const fn unknown(self) -> $name {
                self.without($name(0 $(| $bits)*))
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;

            #[inline]
            fn bitor(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut names = vec![$(if self.contains($name::$flag) { stringify!($flag) } else { "" },)*];
                names.retain(|name| !name.is_empty());
                write!(f, "{:#x}[{}]", self.0, names.join("|"))
            }
        }

        impl $crate::body::Field for $name {
            const LEN: usize = size_of::<$int>();

            #[inline]
            fn read(from: &mut &[u8]) -> Self {
                $name(<$int as $crate::body::Field>::read(from))
            }

            #[inline]
            fn write(&self, to: &mut bytes::BytesMut) {
                $crate::body::Field::write(&self.0, to);
            }
        }
    };
}
