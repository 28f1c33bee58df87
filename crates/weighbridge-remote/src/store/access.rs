//! Who asks a store: credentials, fetched and renewed once for all threads, and what is signed with them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request};
use object_store::RetryConfig;
use object_store::aws::{
    AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, AwsCredentialProvider,
};
use object_store::azure::{
    AzureAuthorizer, AzureConfigKey, AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder,
};
use object_store::client::HttpRequestBody;
use object_store::gcp::{GcpCredential, GcpCredentialProvider, GoogleCloudStorageBuilder, GoogleConfigKey};

use super::connector::Connector;
use super::options::StoreOptions;
use crate::address::StoreKind;
use crate::{Error, ErrorKind, Result};

/// After this time the provider is asked again, which keeps what is still good.
const KEPT: Duration = Duration::from_secs(20);

/// The options of S3 that say who asks. All others are for our own requests.
const OF_CREDENTIALS: [&str; 15] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_token",
    "aws_region",
    "aws_default_region",
    "aws_imdsv1_fallback",
    "aws_metadata_endpoint",
    "aws_container_credentials_relative_uri",
    "aws_container_credentials_full_uri",
    "aws_container_authorization_token_file",
    "aws_web_identity_token_file",
    "aws_role_arn",
    "aws_role_session_name",
    "aws_endpoint_url_sts",
];

#[derive(Clone)]
enum Provider {
    S3(AwsCredentialProvider),
    Google(GcpCredentialProvider),
    Azure(AzureCredentialProvider),
}

#[derive(Clone, PartialEq)]
enum Credential {
    S3(Arc<AwsCredential>),
    Google(Arc<GcpCredential>),
    Azure(Arc<AzureCredential>),
}

#[derive(Default)]
struct State {
    provider: Option<Provider>,
    credential: Option<(Credential, Instant)>,
    /// Counts the credentials that there were.
    version: u64,
}

/// The credentials for one bucket.
pub(super) struct Access {
    kind: StoreKind,
    bucket: String,
    /// The region of S3, the account of Azure.
    scope: String,
    options: StoreOptions,
    connector: Connector,
    anonymous: bool,
    state: Mutex<State>,
}

impl Access {
    pub(super) fn new(
        kind: StoreKind,
        bucket: &str,
        scope: &str,
        options: &StoreOptions,
        connector: Connector,
    ) -> Self {
        let anonymous = options.is(match kind {
            StoreKind::S3 => &["aws_skip_signature"],
            StoreKind::Google => &["google_skip_signature"],
            StoreKind::Azure => &["azure_skip_signature"],
        });
        Self {
            kind,
            bucket: bucket.to_owned(),
            scope: scope.to_owned(),
            options: options.clone(),
            connector,
            anonymous,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the credentials come from, for people.
    pub(super) fn from(&self) -> &'static str {
        let has = |names: &[&str]| self.options.get(names).is_some();
        match self.kind {
            _ if self.anonymous => "nobody",
            StoreKind::S3 if has(&["aws_access_key_id", "aws_secret_access_key"]) => "AWS_ACCESS_KEY_ID",
            StoreKind::S3 if has(&["aws_web_identity_token_file"]) => "AWS_WEB_IDENTITY_TOKEN_FILE",
            StoreKind::S3
                if has(&["aws_container_credentials_relative_uri", "aws_container_credentials_full_uri"]) =>
            {
                "this container's service"
            }
            StoreKind::S3 => "this machine's metadata service",
            StoreKind::Google if has(&["google_bearer_token"]) => "GOOGLE_BEARER_TOKEN",
            StoreKind::Google
                if has(&[
                    "google_service_account",
                    "google_service_account_path",
                    "google_service_account_key",
                ]) =>
            {
                "GOOGLE_SERVICE_ACCOUNT"
            }
            StoreKind::Google if has(&["google_application_credentials"]) => "GOOGLE_APPLICATION_CREDENTIALS",
            StoreKind::Google => "gcloud, or this machine's metadata service",
            StoreKind::Azure
                if has(&[
                    "azure_storage_account_key",
                    "azure_storage_access_key",
                    "azure_storage_master_key",
                ]) =>
            {
                "AZURE_STORAGE_ACCOUNT_KEY"
            }
            StoreKind::Azure if has(&["azure_storage_sas_key", "azure_storage_sas_token"]) => {
                "AZURE_STORAGE_SAS_TOKEN"
            }
            StoreKind::Azure if has(&["azure_storage_token"]) => "AZURE_STORAGE_TOKEN",
            StoreKind::Azure if has(&["azure_client_secret", "azure_storage_client_secret"]) => {
                "AZURE_CLIENT_SECRET"
            }
            StoreKind::Azure if has(&["azure_federated_token_file"]) => "AZURE_FEDERATED_TOKEN_FILE",
            StoreKind::Azure => "this machine's managed identity",
        }
    }

    /// What else may be tried where access is denied.
    pub(super) fn hint(&self) -> String {
        let from = self.from();
        match (self.anonymous, self.kind) {
            (true, _) => "nothing was signed, for the option to skip signatures is set".to_owned(),
            (_, StoreKind::S3) => {
                format!("credentials from {from}; profiles in ~/.aws are not read")
            }
            _ => format!("credentials from {from}"),
        }
    }

    pub(super) fn how_to_renew(&self) -> &'static str {
        match self.kind {
            StoreKind::S3 => "set new ones, for instance by: aws configure export-credentials --format env",
            StoreKind::Google => "set new ones, for instance by: gcloud auth print-access-token",
            StoreKind::Azure => "set new ones, for instance by: az account get-access-token",
        }
    }

    fn none(&self, cause: Option<&str>) -> Error {
        let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
        let message = match self.kind {
            StoreKind::S3 => format!(
                "no credentials from {}{cause}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 AWS_SKIP_SIGNATURE=true for a public bucket; profiles in ~/.aws are not read: \
                 aws configure export-credentials --format env prints what to set",
                self.from()
            ),
            StoreKind::Google => format!(
                "no credentials from {}{cause}: set GOOGLE_APPLICATION_CREDENTIALS or run \
                 gcloud auth application-default login, or set GOOGLE_SKIP_SIGNATURE=true for a public bucket",
                self.from()
            ),
            StoreKind::Azure => format!(
                "no credentials from {}{cause}: set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or \
                 AZURE_SKIP_SIGNATURE=true for a public container",
                self.from()
            ),
        };
        Error::new(ErrorKind::Denied, message)
    }

    /// A provider with nothing fetched.
    fn provider(&self) -> Result<Provider> {
        let connector = self.connector.clone();
        let options = &self.options;
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let bad = |error: &object_store::Error| {
            // What is malformed may be a secret, and is not repeated.
            let what = match error {
                object_store::Error::Generic { store, .. } => *store,
                _ => "the store",
            };
            let message =
                format!("the credentials of {what} from {} are incomplete or malformed", self.from());
            Error::new(ErrorKind::Denied, message)
        };
        Ok(match self.kind {
            StoreKind::S3 => {
                if self.from() == "this machine's metadata service"
                    && options.is(&["aws_ec2_metadata_disabled"])
                {
                    return Err(self.none(Some("which is switched off")));
                }
                let options = options.of("aws_").filter(|(name, _)| OF_CREDENTIALS.contains(name));
                let builder = options.fold(AmazonS3Builder::new(), |builder, (name, value)| {
                    match name.parse::<AmazonS3ConfigKey>() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    }
                });
                let builder = builder.with_bucket_name(&self.bucket).with_retry(retry);
                let store = builder.with_http_connector(connector).build().map_err(|error| bad(&error))?;
                Provider::S3(store.credentials().clone())
            }
            StoreKind::Google => {
                if !options.environment && options.of("google_").all(|(name, _)| name == "google_base_url") {
                    return Err(self.none(None));
                }
                let builder =
                    options.of("google_").fold(GoogleCloudStorageBuilder::new(), |builder, (name, value)| {
                        match name.parse::<GoogleConfigKey>() {
                            Ok(key) => builder.with_config(key, value),
                            Err(_) => builder,
                        }
                    });
                let builder = builder.with_bucket_name(&self.bucket).with_retry(retry);
                let store = builder.with_http_connector(connector).build().map_err(|error| bad(&error))?;
                Provider::Google(store.credentials().clone())
            }
            StoreKind::Azure => {
                let builder =
                    options.of("azure_").fold(MicrosoftAzureBuilder::new(), |builder, (name, value)| {
                        match name.parse::<AzureConfigKey>() {
                            Ok(key) => builder.with_config(key, value),
                            Err(_) => builder,
                        }
                    });
                let builder =
                    builder.with_account(&self.scope).with_container_name(&self.bucket).with_retry(retry);
                let store = builder.with_http_connector(connector).build().map_err(|error| bad(&error))?;
                Provider::Azure(store.credentials().clone())
            }
        })
    }

    /// Asks a provider, which may ask a server, on a thread of its own: the caller's may be one of a runtime,
    /// inside which no other can run.
    fn fetch(&self, provider: &Provider) -> Result<Credential> {
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
            runtime.block_on(async {
                Some(match provider {
                    Provider::S3(provider) => Credential::S3(provider.get_credential().await.ok()?),
                    Provider::Google(provider) => Credential::Google(provider.get_credential().await.ok()?),
                    Provider::Azure(provider) => Credential::Azure(provider.get_credential().await.ok()?),
                })
            })
        };
        self.connector.note.take();
        let asked = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("weighbridge-credentials".into());
            thread.spawn_scoped(scope, ask).ok().and_then(|thread| thread.join().ok()).flatten()
        });
        match asked {
            Some(credential) if credential.is_sound() => Ok(credential),
            Some(_) => {
                let message = format!("the credentials from {} have a character that none has", self.from());
                Err(Error::new(ErrorKind::Denied, message))
            }
            None => Err(self.none(self.connector.note.take().as_deref())),
        }
    }

    /// What to sign with now, and its version.
    fn credential(&self) -> Result<(Option<Credential>, u64)> {
        if self.anonymous {
            return Ok((None, 0));
        }
        let mut state = self.state();
        if let Some((credential, _)) = state.credential.as_ref().filter(|(_, at)| at.elapsed() < KEPT) {
            return Ok((Some(credential.clone()), state.version));
        }
        let provider = match &state.provider {
            Some(provider) => provider.clone(),
            None => self.provider()?,
        };
        let credential = self.fetch(&provider)?;
        state.provider = Some(provider);
        if state.credential.as_ref().is_none_or(|(before, _)| *before != credential) {
            state.version += 1;
        }
        state.credential = Some((credential.clone(), Instant::now()));
        Ok((Some(credential), state.version))
    }

    /// What was signed with this version was refused: fetches others, once for all. Whether there are any.
    pub(super) fn renew(&self, version: u64) -> bool {
        if self.anonymous {
            return false;
        }
        let mut state = self.state();
        if state.version != version {
            return true;
        }
        let Ok(provider) = self.provider() else { return false };
        let Ok(credential) = self.fetch(&provider) else { return false };
        if state.credential.as_ref().is_some_and(|(before, _)| *before == credential) {
            return false;
        }
        state.provider = Some(provider);
        state.credential = Some((credential, Instant::now()));
        state.version += 1;
        true
    }

    /// Signs a request whose body has this sha256. All its headers are signed, so none may change afterwards.
    pub(super) fn sign(&self, request: Request<()>, digest: &[u8; 32]) -> Result<(Request<()>, u64)> {
        let (credential, version) = self.credential()?;
        let mut request = request.map(|()| HttpRequestBody::empty());
        let signed = match &credential {
            None => Ok(()),
            Some(Credential::S3(credential)) => AwsAuthorizer::new(credential, "s3", &self.scope)
                .with_request_payer(self.options.is(&["aws_request_payer"]) || self.requester_pays())
                .with_sign_payload(!self.options.is(&["aws_unsigned_payload"]))
                .try_authorize(&mut request, Some(digest)),
            Some(Credential::Google(credential)) => {
                if !credential.bearer.is_empty()
                    && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", credential.bearer))
                {
                    value.set_sensitive(true);
                    request.headers_mut().insert("authorization", value);
                }
                Ok(())
            }
            Some(Credential::Azure(credential)) => {
                AzureAuthorizer::new(credential, &self.scope).try_authorize(&mut request)
            }
        };
        signed.map_err(|_| Error::new(ErrorKind::Denied, "the request could not be signed"))?;
        Ok((request.map(|_| ()), version))
    }

    fn requester_pays(&self) -> bool {
        self.options.get(&["aws_request_payer"]).is_some_and(|value| value.eq_ignore_ascii_case("requester"))
    }
}

impl Credential {
    /// Whether it may be put into headers.
    fn is_sound(&self) -> bool {
        let good = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        match self {
            Self::S3(credential) => good(&credential.key_id) && credential.token.as_deref().is_none_or(good),
            Self::Google(credential) => good(&credential.bearer),
            Self::Azure(credential) => match credential.as_ref() {
                AzureCredential::BearerToken(token) => good(token),
                _ => true,
            },
        }
    }
}
